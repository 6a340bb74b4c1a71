// Attention on AMX tiles over keys and values of 8-bit codes, which are one operand as they are; no code is widened.
//
// The other operand is a number of 16 bits, 256 high + low, as two rows of bytes: a query in units of a power of two,
// then its weights in units of another one. Products of bytes are exact, so their order does not matter, and a query
// is multiplied in whichever way its task likes. A unit is at most 2^-14 of the largest channel of a query, and 2^-15 of
// the largest scale of the values that a query sees in a segment; weights are at most 1.
#include "attention_tiles.h"
#include "kernels.h"

namespace qwenkit::amx {
namespace {

// High and low bytes of 64 numbers up to 2^16 - 1, to which larger ones are cut.
struct Bytes64 {
    I high, low;

    explicit Bytes64(const I (&v)[4]) {
        const I a = _mm512_packus_epi32(v[0], v[1]), b = _mm512_packus_epi32(v[2], v[3]);  // by 128 bits
        const I order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        const I byte = _mm512_set1_epi16(255);
        low = _mm512_permutexvar_epi32(order, _mm512_packus_epi16(iand(a, byte), iand(b, byte)));
        high = _mm512_packus_epi16(_mm512_srli_epi16(a, 8), _mm512_srli_epi16(b, 8));
        high = _mm512_permutexvar_epi32(order, high);
    }
};

class CodeTiles {
  public:
    static constexpr int64_t most = 16;

    CodeTiles(const Queries& q, const int32_t* positions, Scratch& scratch)
        : q_(q),
          positions_(positions),
          few_(q.task.count <= 8),
          low_(few_ ? q.task.count : 16),
          channels_(q.job.layout.channels()),
          query_bytes_(round_up(channels_, 64) * 32),
          config_(few_ ? int(2 * q.task.count) : q.task.count < 16 ? int(q.task.count) : 16, 64, 6, few_ ? 32 : 64),
          queries_(scratch.take<int8_t>(round_up(q.task.count, most) / most * query_bytes_)),
          query_sums_(scratch.take<float>(round_up(q.task.count, most))),
          factors_(scratch.take<float>(round_up(q.task.count, most))),
          scores_(scratch.take<float>(most * score_row)),
          room_(scratch.take<int8_t>(2 * most * segment_tokens)),
          sums_(scratch.take<int32_t>(2 * most * channels_)),
          pairs_(scratch.take<int8_t>(few_ ? 0 : segment_tokens * channels_)) {
        read();
    }

    void begin(const Segment& s, Ahead& ahead) {
        const int64_t groups = round_up(q_.task.count, most) / most, steps = (s.last - s.first) * channels_ / 32;
        ahead_ = &ahead;
        // Few queries ask for half of what comes: they are as fast as memory, which brings the rest without asking,
        // and asking for all of it costs 2 ms of 25.
        ahead.spread(few_ ? 4 * steps : (2 + groups) * steps);
        if (!few_) pair_values(s);
        for (int64_t u = s.first; u < s.last; u++)
            store(scales_[u], larger_bits(load(s.value_scales[u]), load(s.value_scales[u] + 16)));
    }

    void attend(const Segment& s, const Seen& seen, const Part& own) {
        score(s, seen);
        V some[16], offsets[16];
        alignas(64) float down[16], up[16];
        for (int64_t i = 0; i < 16; i++) some[i] = i < seen.count ? load(tops_[i]) : set(unseen);
        crown(some, factors_ + seen.query, own.maxima, down);
        const V exponents = sub(set(15), exponents_of(largest_scales(s, seen)));
        store(up, scale2(set(1), exponents));
        store(steps_, scale2(set(1), sub(zero(), exponents)));
        for (int64_t i = 0; i < 16; i++) {
            some[i] = offsets[i] = zero();
            if (i >= seen.count) continue;
            if (s.affine) weigh<true>(s, seen, i, set(down[i]), set(up[i]), some[i], offsets[i]);
            else weigh<false>(s, seen, i, set(down[i]), set(up[i]), some[i], offsets[i]);
        }
        store(own.sums, total(some));
        store(own.offsets, s.affine ? total(offsets) : zero());
        if (few_) multiply_values(s, seen);
        else multiply_pairs(seen);
    }
    V output(const Part&, int64_t i, int64_t c) const {
        return mul(whole(sums_ + i * channels_ + c, low_ * channels_), set(steps_[i]));
    }

  private:
    // 256 high + low, rounded once: either is exact as a float32.
    static V whole(const int32_t* high, int64_t low) {
        return fma(set(256), to_float(iload(high)), to_float(iload(high + low)));
    }
    // Of floats from 0 on; a NaN is the largest.
    static V larger_bits(V a, V b) { return floats(imax_unsigned(bits(a), bits(b))); }
    // Of powers of two at or below floats. A NaN stays one.
    static V exponents_of(V x) { return max(set(-100), _mm512_getexp_ps(x)); }

    // Queries as tiles of 64 channels, zeros at the end: high bytes of 16, then low ones; or of all the few.
    void read() {
        const int64_t d = q_.job.layout.head_dim, count = q_.task.count;
        alignas(64) float query[most_channels];
        __builtin_memset(queries_, 0, size_t(round_up(count, most) / most * query_bytes_));
        for (int64_t i = 0; i < count && i < 8; i++) fetch(q_.source<bf16>(i), d);
        for (int64_t i = 0; i < count; i++) {
            if (i + 8 < count) fetch(q_.source<bf16>(i + 8), d);
            q_.read<bf16>(i, query);
            split(query, i, queries_ + i / 16 * query_bytes_ + i % 16 * 64);
        }
    }
    void split(const float* query, int64_t i, int8_t* line) {
        V most_bits = zero();
        I all = izero();
        for (int64_t c = 0; c < channels_; c += 16)
            most_bits = larger_bits(most_bits, floats(iand(bits(load(query + c)), iset(0x7fffffff))));
        const V up = sub(set(14), exponents_of(floats(iset(int(max_unsigned(bits(most_bits)))))));
        for (int64_t c = 0; c < channels_; c += 16) {
            const I v = to_int(min(scale2(load(query + c), up), set(32639)));
            int8_t* at = line + c / 64 * 2048 + c % 64;
            store_bytes(at, right_signed<8>(iadd(v, iset(128))));
            store_bytes(at + low_ * 64, v);
            all = iadd(all, v);
        }
        if (q_.job.layout.format == KvFormat::affine) query_sums_[i] = float(isum(all));
        const float scale = 1.44269504f / __builtin_sqrtf(float(q_.job.layout.head_dim));
        factors_[i] = _mm512_cvtss_f32(scale2(set(scale), sub(zero(), up)));
    }

    // K of 64: the values of two units, channels by 16. What lies in the place of a unit that is not seen, weighs 0.
    void pair_values(const Segment& s) const {
        for (int64_t u = s.first; u < s.last; u++) {
            for (int64_t c = 0; c < channels_; c += 16) {
                int8_t* to = pairs_ + pair_at(u, c) + u % 2 * tile_cells;
                ahead_->take();
                for (int64_t i = 0; i < tile_cells; i += 64) istore(to + i, iload(s.values[u] + c * 32 + i));
            }
        }
    }

    // Scores of all units; those of one are looked at while the next one's are multiplied.
    void score(const Segment& s, const Seen& seen) {
        for (int64_t i = 0; i < seen.count; i++) store(tops_[i], set(unseen));
        const int8_t* x = queries_ + seen.query / 16 * query_bytes_;
        for (int64_t u = seen.first; u < seen.last; u++) {
            few_ ? multiply_few_keys(s.keys[u], x, products(u)) : multiply_keys(s.keys[u], x, products(u));
            if (u > seen.first) look(s, seen, u - 1);
        }
        look(s, seen, seen.last - 1);
    }
    int32_t* products(int64_t u) const { return reinterpret_cast<int32_t*>(room_) + u % 2 * 2 * most * unit_tokens; }

    // In the order in which multiply_pairs reads.
    static int64_t pair_at(int64_t u, int64_t c) { return c / 32 * 32 * segment_tokens + u / 2 * 2048 + c % 32 * 64; }

    // By the 32 keys of a unit. After the last 32 channels follows something else, by which zeros are multiplied.
    void multiply_few_keys(const char* keys, const int8_t* x, int32_t* y) const {
        zero_sums();
        for (int64_t c = 0; c < channels_; c += 64, x += 2048, keys += 1024) {
            ahead_->take();
            _tile_loadd(4, x, 64);
            _tile_loadd(6, keys, 64);
            _tile_dpbssd(0, 4, 6);
            ahead_->take();
            _tile_loadd(6, keys + channels_ * 16, 64);
            _tile_dpbssd(1, 4, 6);
        }
        _tile_stored(0, y, 128);
        _tile_stored(1, y + 16, 128);
    }
    // Sums of the first 16 keys are stored while those of the others are made.
    void multiply_keys(const char* keys, const int8_t* x, int32_t* y) const {
        zero_sums();
        const int64_t tiles = query_bytes_ / 2048;
        for (int64_t t = 0; t < tiles; t++) {
            ahead_->take();
            _tile_loadd(4, x + t * 2048, 64);
            _tile_loadd(6, keys + t * 1024, 64);
            _tile_dpbssd(0, 4, 6);
            _tile_loadd(5, x + t * 2048 + 1024, 64);
            _tile_dpbssd(2, 5, 6);
        }
        keys += channels_ * 16;
        for (int64_t t = 0; t < tiles; t++) {
            _tile_loadd(4, x + t * 2048, 64);
            _tile_loadd(7, keys + t * 1024, 64);
            _tile_dpbssd(1, 4, 7);
            _tile_loadd(5, x + t * 2048 + 1024, 64);
            _tile_dpbssd(3, 5, 7);
            if (t > 0) continue;
            _tile_stored(0, y, 128);
            _tile_stored(2, y + 512, 128);
        }
        _tile_stored(1, y + 16, 128);
        _tile_stored(3, y + 528, 128);
    }

    // Scores of a unit's keys in units of the query's step, and the largest ones so far, lane by lane.
    void look(const Segment& s, const Seen& seen, int64_t u) {
        s.affine ? look_as<true>(s, seen, u) : look_as<false>(s, seen, u);
    }
    template <bool AFFINE>
    void look_as(const Segment& s, const Seen& seen, int64_t u) {
        const int64_t key = u * unit_tokens, low = low_ * unit_tokens, count = seen.count;
        const int32_t* y = products(u);
        const int32_t* positions = positions_ + seen.query;
        const float* query_sums = query_sums_ + seen.query;
        const bool masked = partly(s, seen, u);
        float *row = scores_ + key, *top = tops_[0];
        const V scales[2] = {load(s.key_scales[u]), load(s.key_scales[u] + 16)};
        const V bases[2] = {load(s.key_bases + key), load(s.key_bases + key + 16)};
        for (int64_t i = 0; i < count; i++, y += unit_tokens, row += score_row, top += 16) {
            V v[2];
            for (int64_t h = 0; h < 2; h++) {
                v[h] = mul(whole(y + h * 16, low), scales[h]);
                if (AFFINE) v[h] = fma(set(query_sums[i]), bases[h], v[h]);
                if (masked) v[h] = visible(v[h], set(unseen), s, positions[i], key + h * 16);
                store(row + h * 16, v[h]);
            }
            store(top, max(load(top), max(v[0], v[1])));
        }
    }
    // Whether some query does not see the whole of a unit.
    bool partly(const Segment& s, const Seen& seen, int64_t u) const {
        const int64_t key = s.begin + u * unit_tokens, window = q_.job.window;
        const int32_t* positions = positions_ + seen.query;
        return positions[0] < key + unit_tokens - 1 || (window && positions[seen.count - 1] + 1 - window > key);
    }
    // Lanes of v that stand for keys which a position sees, of those from `key` of the segment on.
    V visible(V v, V others, const Segment& s, int64_t position, int64_t key) const {
        const int64_t newest = position - s.begin - key, window = q_.job.window;
        return between(v, others, window ? newest + 1 - window : 0, newest);
    }

    // Of the values that each query sees; those of units that all see are looked at once.
    V largest_scales(const Segment& s, const Seen& seen) const {
        const int32_t* positions = positions_ + seen.query;
        V some[16], all = zero();
        for (V& v : some) v = zero();
        for (int64_t u = seen.first; u < seen.last; u++) {
            if (!partly(s, seen, u)) {
                all = larger_bits(all, load(scales_[u]));
                continue;
            }
            for (int64_t i = 0; i < seen.count; i++)
                for (int64_t h = 0; h < 32; h += 16) {
                    const V v = load(s.value_scales[u] + h);
                    some[i] = larger_bits(some[i], visible(v, zero(), s, positions[i], u * unit_tokens + h));
                }
        }
        for (V& v : some) v = larger_bits(v, all);
        return across(some, larger_bits);
    }

    // Weights times scales 2^up as bytes, high ones and low ones in rows of their own.
    template <bool AFFINE>
    void weigh(const Segment& s, const Seen& seen, int64_t i, V down, V up, V& total, V& offset) const {
        const V factor = set(factors_[seen.query + i]);
        V totals[2] = {zero(), zero()}, offsets[2] = {zero(), zero()};
        const float* row = scores_ + i * score_row;
        int8_t *high = room_ + i * segment_tokens, *low = high + low_ * segment_tokens;
        auto unit = [&](int64_t u, I* v) {
            for (int64_t h = 0; h < 2; h++) {
                const int64_t key = u * unit_tokens + h * 16;
                const V p = weight(fma(load(row + key), factor, down));
                totals[h] = add(totals[h], p);
                if (AFFINE) offsets[h] = fma(p, load(s.value_bases + key), offsets[h]);
                v[h] = to_int(mul(mul(p, load(s.value_scales[u] + h * 16)), up));
            }
        };
        for (int64_t u = seen.first & ~1; u < seen.last; u += 2) {
            I v[4] = {izero(), izero(), izero(), izero()};
            if (u >= seen.first) unit(u, v);
            if (u + 1 < seen.last) unit(u + 1, v + 2);
            const Bytes64 bytes(v);
            istore(high + u * unit_tokens, bytes.high);
            istore(low + u * unit_tokens, bytes.low);
        }
        total = add(totals[0], totals[1]);
        offset = add(offsets[0], offsets[1]);
    }

    // By the values of a few queries' units as they lie, channels by 64 or 32.
    void multiply_values(const Segment& s, const Seen& seen) const {
        for (int64_t c = 0; c < channels_; c += 64) {
            const bool wide = c + 64 <= channels_;
            zero_sums();
            for (int64_t u = seen.first; u < seen.last; u++) {
                const char* values = s.values[u] + c * 32;
                ahead_->take();
                _tile_loadd(5, room_ + u * unit_tokens, segment_tokens);
                _tile_loadd(7, values, 64);
                _tile_dpbusd(0, 5, 7);
                _tile_loadd(7, values + tile_cells, 64);
                _tile_dpbusd(1, 5, 7);
                if (!wide) continue;
                ahead_->take();
                _tile_loadd(7, values + 2 * tile_cells, 64);
                _tile_dpbusd(2, 5, 7);
                _tile_loadd(7, values + 3 * tile_cells, 64);
                _tile_dpbusd(3, 5, 7);
            }
            _tile_stored(0, sums_ + c, channels_ * 4);
            _tile_stored(1, sums_ + c + 16, channels_ * 4);
            if (!wide) continue;
            _tile_stored(2, sums_ + c + 32, channels_ * 4);
            _tile_stored(3, sums_ + c + 48, channels_ * 4);
        }
    }
    // By pairs of units, channels by 32.
    void multiply_pairs(const Seen& seen) const {
        for (int64_t c = 0; c < channels_; c += 32) {
            zero_sums();
            for (int64_t u = seen.first & ~1; u < seen.last; u += 2) {
                const int8_t *x = room_ + u * unit_tokens, *values = pairs_ + pair_at(u, c);
                ahead_->take();
                _tile_loadd(4, x, segment_tokens);
                _tile_loadd(6, values, 64);
                _tile_dpbusd(0, 4, 6);
                _tile_loadd(5, x + 16 * segment_tokens, segment_tokens);
                _tile_dpbusd(2, 5, 6);
                _tile_loadd(7, values + 2 * tile_cells, 64);
                _tile_dpbusd(1, 4, 7);
                _tile_dpbusd(3, 5, 7);
            }
            _tile_stored(0, sums_ + c, channels_ * 4);
            _tile_stored(1, sums_ + c + 16, channels_ * 4);
            _tile_stored(2, sums_ + 16 * channels_ + c, channels_ * 4);
            _tile_stored(3, sums_ + 16 * channels_ + c + 16, channels_ * 4);
        }
    }

    const Queries& q_;
    const int32_t* positions_;
    const bool few_;     // queries whose high and low bytes fit the 16 rows of a tile
    const int64_t low_;  // rows from high bytes to low ones
    const int64_t channels_, query_bytes_;
    const TileConfig config_;
    int8_t* queries_;
    float *query_sums_, *factors_, *scores_;
    int8_t* room_;  // products of two units, then weights
    int32_t* sums_;
    int8_t* pairs_;
    alignas(64) float tops_[16][16], scales_[segment_units][16];
    alignas(64) float steps_[16];  // of weights
    Ahead* ahead_ = nullptr;
};

}  // namespace

void attend_codes(const PagedJob& job, const AttendTask& task, char* scratch) {
    TileTask<CodeTiles>(job, task, scratch).run();
}

}  // namespace qwenkit::amx
