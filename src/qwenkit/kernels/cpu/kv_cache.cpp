// Writes new keys and values into their units: keys rotated, both rounded to 8 bits where asked.
#include "kernels.h"
#include "rotary.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

// A cell of bf16 or of a code has its neighbour row beside it; see attention.h.
template <class C> constexpr bool paired = sizeof(C) == 1;
template <> constexpr bool paired<bf16> = true;

// Codes are kept around zero, 128 below the unsigned ones, so that a code is exact in bf16 and small.
template <class T>
void quantize(const T* x, int64_t n, KvFormat format, int8_t* codes, float* scale, float* minimum) {
    alignas(64) float floats[most_channels];
    for (int64_t i = 0; i < n; i += lanes)
        n - i < lanes ? store_part(floats + i, load_part(x + i, n - i), n - i) : store(floats + i, load(x + i));
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

// Two neighbour rows of a column.
inline void copy_pair(bf16* to, const bf16* from) { __builtin_memcpy(to, from, 4); }
inline void copy_pair(int8_t* to, const int8_t* from) { __builtin_memcpy(to, from, 2); }

// x has zeros up to whole tiles of channels.
template <class C>
void put_key(char* side, const C* x, int64_t channels, int64_t token) {
    C* tile = reinterpret_cast<C*>(side) + token / 16 * tile_cells;
    const int64_t n = token % 16, pairs = (channels + 1) / 2;
    for (int64_t first = 0; first < pairs; first += 16, tile += 2 * tile_cells) {
        const int64_t count = pairs - first < 16 ? pairs - first : 16;
        for (int64_t k = 0; k < count; k++) {
            const C* two = x + 2 * (first + k);
            if constexpr (paired<C>) {
                copy_pair(tile + (k * 16 + n) * 2, two);
            } else {
                tile[2 * k * 16 + n] = two[0];
                tile[(2 * k + 1) * 16 + n] = two[1];
            }
        }
    }
}

template <class C>
void put_value(char* side, const C* x, int64_t channels, int64_t token) {
    C* row = reinterpret_cast<C*>(side) + (paired<C> ? token / 2 * 32 + token % 2 : token * 16);
    for (int64_t c = 0; c < channels; c += 16, row += tile_cells) {
        const int64_t count = channels - c < 16 ? channels - c : 16;
        for (int64_t n = 0; n < count; n++) row[paired<C> ? 2 * n : n] = x[c + n];
    }
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
    int8_t* row = reinterpret_cast<int8_t*>(side) + token / 2 * 32;
    const __mmask32 mine = token % 2 ? 0xaaaaaaaau : 0x55555555u;
    for (int64_t c = 0; c < channels; c += 16, row += tile_cells) {
        const int64_t count = channels - c < 16 ? channels - c : 16;
        const __m256i v = _mm256_cvtepu8_epi16(_mm_maskz_loadu_epi8(__mmask16((1u << count) - 1), x + c));
        _mm256_mask_storeu_epi8(row, mine, token % 2 ? _mm256_slli_epi16(v, 8) : v);
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
inline I widen_pairs(const bf16* x) { return iload(x); }
inline I widen_pairs(const int8_t* x) { return widen(reinterpret_cast<const uint16_t*>(x)); }
inline void store_pairs(bf16* to, I v) { istore(to, v); }
inline void store_pairs(int8_t* to, I v) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16(v));
}
inline I interleave(const bf16* a, const bf16* b) {
    return _mm512_or_si512(widen(&a->bits), left<16>(widen(&b->bits)));
}
inline I interleave(const int8_t* a, const int8_t* b) {
    const I high = left<8>(widen(reinterpret_cast<const uint8_t*>(b)));
    return _mm512_or_si512(widen(reinterpret_cast<const uint8_t*>(a)), high);
}

// x: [16][channels], whole tiles of channels.
template <class C>
void put_keys(char* side, const C* x, int64_t channels, int64_t token) {
    C* tile = reinterpret_cast<C*>(side) + token / 16 * tile_cells;
    for (int64_t c = 0; c < channels; c += 32, tile += 2 * tile_cells) {
        I rows[16];
        for (int64_t t = 0; t < 16; t++) rows[t] = widen_pairs(x + t * channels + c);
        transpose(rows);
        for (int64_t k = 0; k < 16; k++) store_pairs(tile + k * 32, rows[k]);
    }
}
template <class C>
void put_values(char* side, const C* x, int64_t step, int64_t channels, int64_t token) {
    C* row = reinterpret_cast<C*>(side) + token / 2 * 32;
    for (int64_t c = 0; c + 16 <= channels; c += 16, row += tile_cells)
        for (int64_t t = 0; t < 16; t += 2) {
            const C* pair = x + t * step + c;
            store_pairs(row + t * 16, interleave(pair, pair + step));
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
        quantize(key, l_.head_dim, l_.format, codes, unit.key_scales() + slot, unit.key_minima() + slot);
        return codes;
    }
    const int8_t* round_value(const KvUnit& unit, const T* value, int64_t slot, int8_t* codes) const {
        quantize(value, l_.head_dim, l_.format, codes, unit.value_scales() + slot, unit.value_minima() + slot);
        return codes;
    }

    void put(const KvUnit& unit, int64_t t, int64_t slot) {
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
        if (l_.head_dim % 16 || (plain && !paired<T>)) return false;
        fetch_to_write(unit.keys(), l_.side_bytes());
        fetch_to_write(unit.values(), l_.side_bytes());
        for (int64_t i = 0; i < 16; i++) {
            if (first + 16 + i < task_.last) fetch_row(first + 16 + i);
            const T* key = turn(first + i, turned_ + (plain ? i * channels : 0));
            if (!plain) round_key(unit, key, slot + i, codes_ + i * channels);
        }
        if constexpr (paired<T>) {
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
};

}  // namespace

void keep(const PagedJob& job, const KeepTask& task) {
    if (job.layout.type == Dtype::f32) Keeper<float>(job, task).run();
    else if (job.layout.type == Dtype::bf16) Keeper<bf16>(job, task).run();
    else Keeper<f16>(job, task).run();
}

}  // namespace qwenkit::QWENKIT_LANES
