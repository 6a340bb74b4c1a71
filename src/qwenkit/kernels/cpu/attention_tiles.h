// What attention on tiles does with vectors: codes to bf16, and scores to weights in place.
#pragma once
#include "attention_flow.h"
#include "tile_config.h"

namespace qwenkit::amx {

using namespace QWENKIT_LANES;

// Floats from one query's scores to the next one's: a power of two would put all queries into few cache sets.
constexpr int64_t score_row = segment_tokens + 16;

struct Seen {  // queries from `query` on, and the units of a segment that some of them see
    int64_t query, count, first, last;
};

inline V four_bytes(const char* p) {
    return to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
}

// A tile of codes as bf16, in which they are exact.
inline void widen_tile(const char* codes, uint16_t* tile) {
    for (int64_t i = 0; i < tile_cells; i += 32)
        istore(tile + i, I(_mm512_cvtne2ps_pbh(four_bytes(codes + i + 16), four_bytes(codes + i))));
}

// 2^x for x <= 0 or hardly more, relative error below 3e-6; 2^0 is 1 exactly. A NaN stays one.
inline V weight(V x) {
    const V r = _mm512_reduce_ps(x, 9);  // x - floor(x)
    V p = set(0.0134266855f);
    p = fma(p, r, set(0.0522424722f));
    p = fma(p, r, set(0.241280206f));
    p = fma(p, r, set(0.693044845f));
    p = fma(p, r, set(1.0f));
    return scale2(p, x);  // by 2^floor(x)
}

// 16 vectors to one: lane i is op over the lanes of v[i], always in the same order.
template <class Op>
inline V across(const V* v, Op&& op) {
    V a[8], b[4];
    for (int i = 0; i < 8; i++)
        a[i] = op(_mm512_unpacklo_ps(v[2 * i], v[2 * i + 1]), _mm512_unpackhi_ps(v[2 * i], v[2 * i + 1]));
    for (int i = 0; i < 4; i++) {
        const __m512d x = _mm512_castps_pd(a[2 * i]), y = _mm512_castps_pd(a[2 * i + 1]);
        b[i] = op(_mm512_castpd_ps(_mm512_unpacklo_pd(x, y)), _mm512_castpd_ps(_mm512_unpackhi_pd(x, y)));
    }
    auto halve = [&](V x, V y) { return op(_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd)); };
    return halve(halve(b[0], b[1]), halve(b[2], b[3]));
}

// Scores [32 queries][score_row] to weights 2^(score - maximum) as bf16 at the start of each row, unseen keys 0;
// for 8-bit values times their scales.
struct Weigher {
    const Segment& s;
    const Seen& seen;
    float* scores;
    const int32_t* positions;
    const float* query_sums;
    int64_t window;
    float scale;  // from q k to exponents of 2

    void run(const Part& part) const {
        if (s.affine) run_as<true, true>(part);
        else if (s.scaled) run_as<true, false>(part);
        else run_as<false, false>(part);
    }

  private:
    template <bool SCALED, bool AFFINE>
    void run_as(const Part& part) const {
        for (int64_t i = 0; i < seen.count; i += 16) {
            const int64_t count = seen.count - i < 16 ? seen.count - i : 16;
            V some[16], offsets[16];
            for (int64_t j = 0; j < 16; j++) some[j] = j < count ? look<SCALED, AFFINE>(i + j) : set(unseen);
            const V most = across(some, [](V a, V b) { return max(a, b); });
            const __mmask16 none = _mm512_cmp_ps_mask(most, set(unseen), _CMP_EQ_OQ);
            const V exponents = mul(most, set(scale));
            store(part.maxima + i, _mm512_mask_mov_ps(exponents, none, set(unseen)));
            alignas(64) float down[16];
            store(down, _mm512_mask_mov_ps(sub(zero(), exponents), none, zero()));
            for (int64_t j = 0; j < 16; j++) {
                some[j] = offsets[j] = zero();
                if (j < count) weigh<SCALED, AFFINE>(i + j, set(down[j]), some[j], offsets[j]);
            }
            auto plus = [](V a, V b) { return add(a, b); };
            store(part.sums + i, across(some, plus));
            store(part.offsets + i, AFFINE ? across(offsets, plus) : zero());
        }
    }

    // The largest scores of a query, lane by lane; those masked or scaled go back.
    template <bool SCALED, bool AFFINE>
    V look(int64_t i) const {
        const int64_t newest = positions[i] - s.begin, oldest = window ? newest + 1 - window : 0;
        const int64_t first = seen.first, last = seen.last;
        float* row = scores + i * score_row;
        V top[2] = {set(unseen), set(unseen)};
        auto unit = [&](int64_t u, bool partly) {
            const int64_t key = u * unit_tokens;
            for (int64_t h = 0; h < 2; h++) {
                float* at = row + key + h * 16;
                V v = load(at);
                if (SCALED) v = mul(v, load(s.key_scales[u] + h * 16));
                if (AFFINE) v = fma(set(query_sums[i]), load(s.key_bases + key + h * 16), v);
                if (partly) v = between(v, set(unseen), oldest - key - h * 16, newest - key - h * 16);
                if (SCALED || partly) store(at, v);
                top[h] = max(top[h], v);
            }
        };
        int64_t u = first;
        for (; u < last && u * unit_tokens < oldest; u++) unit(u, true);
        for (; u < last && u * unit_tokens + unit_tokens - 1 <= newest; u++) unit(u, false);
        for (; u < last; u++) unit(u, true);
        return max(top[0], top[1]);
    }

    template <bool SCALED, bool AFFINE>
    void weigh(int64_t i, V down, V& total, V& offset) const {
        const V factor = set(scale);
        V totals[2] = {zero(), zero()}, offsets[2] = {zero(), zero()};
        float* row = scores + i * score_row;
        const int64_t last = seen.last;
        for (int64_t u = seen.first; u < last; u++) {
            V p[2];
            for (int64_t h = 0; h < 2; h++) {
                const int64_t key = u * unit_tokens + h * 16;
                p[h] = weight(fma(load(row + key), factor, down));
                totals[h] = add(totals[h], p[h]);
                if (AFFINE) offsets[h] = fma(p[h], load(s.value_bases + key), offsets[h]);
                if (SCALED) p[h] = mul(p[h], load(s.value_scales[u] + h * 16));
            }
            istore(row + u * 16, I(_mm512_cvtne2ps_pbh(p[1], p[0])));
        }
        total = add(totals[0], totals[1]);
        if (AFFINE) offset = add(offsets[0], offsets[1]);
    }
};

}  // namespace qwenkit::amx
