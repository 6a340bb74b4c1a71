// Writes new keys and values into their units: keys rotated, both rounded to 8 or 4 bits where asked.
#include "kernels.h"
#include "nibbles.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

// Rows of a tile that lie side by side; see attention.h.
template <class C> constexpr int64_t together = 1;
template <> constexpr int64_t together<bf16> = 2;
template <> constexpr int64_t together<int8_t> = 4;

// x times factors, if there are some. Codes are kept around zero, 128 below the unsigned ones: small, and signed
// bytes multiply.
template <class T>
void quantize(const T* x, const float* factors, int64_t n, KvFormat format, int8_t* codes, float* scale,
              float* minimum) {
    alignas(64) float floats[most_channels];
    for (int64_t i = 0; i < n; i += lanes) {
        V v = n - i < lanes ? load_part(x + i, n - i) : load(x + i);
        if (factors) v = mul(v, load(factors + i));
        n - i < lanes ? store_part(floats + i, v, n - i) : store(floats + i, v);
    }
    for (int64_t i = n; i < round_up(n, lanes); i++) floats[i] = floats[0];
    V low = load(floats), high = low, broken = zero();
    for (int64_t i = 0; i < n; i += lanes) {
        const V v = load(floats + i);
        low = min(low, v);
        high = max(high, v);
        broken = add(broken, sub(v, v));  // NaN from a NaN or an infinity
    }
    const float least = smallest(low), most = largest(high), poison = sum(broken);
    const bool affine = format == KvFormat::affine;
    const float size = affine ? (most - least) / 255 : (most > -least ? most : -least) / 127;
    const bool fits = size > 0 && poison == 0;
    for (int64_t i = 0; i < n; i += lanes) {
        V v = load(floats + i);
        if (affine) v = sub(v, set(least));
        v = fits ? nearest(div(v, set(size))) : zero();
        const I code = to_int(affine ? sub(clamp(v, 0, 255), set(128)) : clamp(v, -127, 127));
        if (n - i >= lanes) {
            store_bytes(codes + i, code);
            continue;
        }
        alignas(16) int8_t some[lanes];
        store_bytes(some, code);
        for (int64_t j = 0; i + j < n; j++) codes[i + j] = some[j];
    }
    *scale = size + poison;
    if (affine) *minimum = least;
}

template <class C>
void put_key(char* side, const C* x, int64_t channels, int64_t token) {
    constexpr int64_t n = together<C>;
    C* cell = reinterpret_cast<C*>(side) + token / 16 * round_up(channels, 32) * 16 + token % 16 * n;
    for (int64_t c = 0; c < channels; c += n, cell += 16 * n)
        for (int64_t i = 0; i < n && c + i < channels; i++) cell[i] = x[c + i];
}

template <class C>
void put_value(char* side, const C* x, int64_t channels, int64_t token) {
    constexpr int64_t n = together<C>;
    C* row = reinterpret_cast<C*>(side) + token / n * n * 16 + token % n;
    for (int64_t c = 0; c < channels; c += 16, row += tile_cells)
        for (int64_t i = 0; i < 16 && c + i < channels; i++) row[i * n] = x[c + i];
}
#if defined(__AVX512F__)
template <>
void put_value(char* side, const bf16* x, int64_t channels, int64_t token) {
    bf16* row = reinterpret_cast<bf16*>(side) + token / 2 * 32;
    const __mmask32 mine = token % 2 ? 0xaaaaaaaau : 0x55555555u;
    for (int64_t c = 0; c < channels; c += 16, row += tile_cells) {
        const int64_t count = channels - c < 16 ? channels - c : 16;
        const I v = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(__mmask16((1u << count) - 1), x + c));
        _mm512_mask_storeu_epi16(row, mine, token % 2 ? left<16>(v) : v);
    }
}
template <>
void put_value(char* side, const int8_t* x, int64_t channels, int64_t token) {
    int8_t* row = reinterpret_cast<int8_t*>(side) + token / 4 * 64;
    const __m512i shift = _mm512_set1_epi32(int(token % 4 * 8));
    for (int64_t c = 0; c < channels; c += 16, row += tile_cells) {
        const int64_t count = channels - c < 16 ? channels - c : 16;
        const I v = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(__mmask16((1u << count) - 1), x + c));
        _mm512_mask_storeu_epi8(row, 0x1111111111111111ull << token % 4, _mm512_sllv_epi32(v, shift));
    }
}

// 16 tokens at once, a tile's columns: whole lines are written, which single columns would ask for 16 times.
inline void transpose(I (&r)[16]) {
    I s[16];
    for (int i = 0; i < 16; i += 2) {
        s[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        s[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4)
        for (int j = 0; j < 2; j++) {
            r[i + 2 * j] = _mm512_unpacklo_epi64(s[i + j], s[i + j + 2]);
            r[i + 2 * j + 1] = _mm512_unpackhi_epi64(s[i + j], s[i + j + 2]);
        }
    for (int i = 0; i < 4; i++)  // 128-bit pieces: rows 4 j to 4 j + 3, columns i, i + 4, i + 8, i + 12
        for (int j = 0; j < 2; j++) {
            s[i + 8 * j] = _mm512_shuffle_i32x4(r[i + 8 * j], r[i + 8 * j + 4], 0x88);
            s[i + 8 * j + 4] = _mm512_shuffle_i32x4(r[i + 8 * j], r[i + 8 * j + 4], 0xdd);
        }
    for (int i = 0; i < 8; i++) {
        r[i % 4 + i / 4 * 4] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0x88);
        r[i % 4 + i / 4 * 4 + 8] = _mm512_shuffle_i32x4(s[i], s[i + 8], 0xdd);
    }
}
inline I wide(const bf16* p) { return widen(&p->bits); }
inline I wide(const int8_t* p) { return widen(reinterpret_cast<const uint8_t*>(p)); }

// x: [16][channels], whole tiles of channels.
template <class C>
void put_keys(char* side, const C* x, int64_t channels, int64_t token) {
    C* line = reinterpret_cast<C*>(side) + token * channels;
    constexpr int64_t cells = 64 / sizeof(C);
    for (int64_t c = 0; c < channels; c += cells) {
        I lines[16];
        for (int64_t t = 0; t < 16; t++) lines[t] = iload(x + t * channels + c);
        transpose(lines);
        for (int64_t k = 0; k < 16 && c + k * together<C> < channels; k++, line += cells) istore(line, lines[k]);
    }
}
template <class C>
void put_values(char* side, const C* x, int64_t step, int64_t channels, int64_t token) {
    C* line = reinterpret_cast<C*>(side) + token * 16;
    for (int64_t c = 0; c + 16 <= channels; c += 16, line += tile_cells)
        for (int64_t t = 0; t < 16; t += together<C>) {
            const C* first = x + t * step + c;
            I cells = iadd(wide(first), left<8 * sizeof(C)>(wide(first + step)));
            if constexpr (sizeof(C) == 1)
                cells = iadd(cells, iadd(left<16>(wide(first + 2 * step)), left<24>(wide(first + 3 * step))));
            istore(line + t * 16, cells);
        }
}
#endif

template <class T>
class Keeper {
  public:
    Keeper(const PagedJob& job, const KeepTask& task)
        : job_(job), l_(job.layout), task_(task), start_(job.starts[task.row] - job.offsets[task.row]) {
        for (int64_t c = l_.head_dim; c < l_.channels(); c++)
            for (int64_t t = 0; t < 16; t++) turned_[t * l_.channels() + c] = T{}, codes_[t * l_.channels() + c] = 0;
        for (int64_t c = 0; l_.codes() && c < l_.channels(); c += lanes)
            store(inverse_steps_ + c, div(set(1), load(l_.key_steps(task.head) + c)));
    }

    // Rows of different tokens lie on different pages, and columns on many lines: all are asked for early.
    void run() {
        for (int64_t t = task_.first; t < task_.last && t < task_.first + 16; t++) fetch_row(t);
        for (int64_t t = task_.first; t < task_.last;) {
            const int64_t slot = (start_ + t) % unit_tokens;
            KvUnit unit = job_.unit(task_.row, task_.head, (start_ + t) / unit_tokens);
            if (slot % 16 == 0 && t + 16 <= task_.last && put_16(unit, t, slot)) {
                t += 16;
            } else {
                if (t + 16 < task_.last) fetch_row(t + 16);
                put(unit, t, slot);
                t++;
            }
        }
    }

  private:
    const T* key(int64_t t) const {
        const int64_t head = t * (l_.heads + 2 * l_.kv_heads) + l_.heads + task_.head;
        return static_cast<const T*>(job_.qkv) + head * l_.head_dim;
    }
    const T* value(int64_t t) const { return key(t) + l_.kv_heads * l_.head_dim; }
    void fetch_row(int64_t t) const {
        fetch(key(t), l_.head_dim);
        fetch(value(t), l_.head_dim);
    }
    const T* turn(int64_t t, T* turned) const {
        rotate(key(t), turned, job_.cos + t * job_.rotary, job_.sin + t * job_.rotary, job_.rotary, l_.head_dim);
        return turned;
    }
    const int8_t* round_key(const KvUnit& unit, const T* key, int64_t slot, int8_t* codes) const {
        quantize(key, inverse_steps_, l_.head_dim, l_.format, codes, unit.key_scales() + slot, unit.key_minima() + slot);
        return codes;
    }
    const int8_t* round_value(const KvUnit& unit, const T* value, int64_t slot, int8_t* codes) const {
        quantize(value, nullptr, l_.head_dim, l_.format, codes, unit.value_scales() + slot, unit.value_minima() + slot);
        return codes;
    }

    void put(const KvUnit& unit, int64_t t, int64_t slot) {
        if (l_.format == KvFormat::nibbles) {
            put_nibble_key(job_, task_.head, t, key(t), unit, slot);
            put_nibble_value(l_, value(t), unit, slot);
            return;
        }
        const T* key = turn(t, turned_);
        if (l_.format == KvFormat::plain) {
            put_key<T>(unit.keys(), key, l_.head_dim, slot);
            put_value<T>(unit.values(), value(t), l_.head_dim, slot);
        } else {
            put_key<int8_t>(unit.keys(), round_key(unit, key, slot, codes_), l_.head_dim, slot);
            put_value<int8_t>(unit.values(), round_value(unit, value(t), slot, codes_), l_.head_dim, slot);
        }
    }

#if defined(__AVX512F__)
    // False if cells of this type or number are put one by one.
    bool put_16(const KvUnit& unit, int64_t first, int64_t slot) {
        const bool plain = l_.format == KvFormat::plain;
        const int64_t channels = l_.channels();
        if (l_.head_dim % 16 || l_.format == KvFormat::nibbles || (plain && together<T> == 1)) return false;
        fetch_to_write(unit.keys(), l_.side_bytes());
        fetch_to_write(unit.values(), l_.side_bytes());
        for (int64_t i = 0; i < 16; i++) {
            if (first + 16 + i < task_.last) fetch_row(first + 16 + i);
            const T* key = turn(first + i, turned_ + (plain ? i * channels : 0));
            if (!plain) round_key(unit, key, slot + i, codes_ + i * channels);
        }
        if constexpr (together<T> > 1) {
            if (plain) {
                put_keys<T>(unit.keys(), turned_, channels, slot);
                const int64_t step = value(1) - value(0);
                put_values<T>(unit.values(), value(first), step, l_.head_dim, slot);
                return true;
            }
        }
        put_keys<int8_t>(unit.keys(), codes_, channels, slot);
        for (int64_t i = 0; i < 16; i++) round_value(unit, value(first + i), slot + i, codes_ + i * channels);
        put_values<int8_t>(unit.values(), codes_, channels, l_.head_dim, slot);
        return true;
    }
#else
    bool put_16(const KvUnit&, int64_t, int64_t) { return false; }
#endif

    const PagedJob& job_;
    const PagedLayout& l_;
    const KeepTask& task_;
    const int64_t start_;
    alignas(64) T turned_[16 * most_channels];
    alignas(64) int8_t codes_[16 * most_channels];
    alignas(64) float inverse_steps_[most_channels];  // exact
};

}  // namespace

void keep(const PagedJob& job, const KeepTask& task) {
    if (job.layout.type == Dtype::f32) Keeper<float>(job, task).run();
    else if (job.layout.type == Dtype::bf16) Keeper<bf16>(job, task).run();
    else Keeper<f16>(job, task).run();
}

}  // namespace qwenkit::QWENKIT_LANES
