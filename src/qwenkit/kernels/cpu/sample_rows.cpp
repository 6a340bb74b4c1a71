// Choosing tokens without sorting. A row is widened to float32 once, with the maximum of each block; the
// maxima say which blocks can hold what is looked for. Floors are found by counting bits of scores (radix
// selection), masses are whole numbers, so nothing depends on how the work is cut.
#include "kernels.h"
#include "lanes.h"
#include "sampling.h"

#include <float.h>
#include <math.h>

namespace qwenkit::QWENKIT_LANES {
namespace {

constexpr int64_t block = sampling_block;
constexpr int64_t unit_bits = 53;                  // of uniform numbers and nucleus masses
constexpr float weightless = -29.0f;               // scores below this have no mass
constexpr float windows[] = {-3.0f, -9.0f, weightless};  // a nucleus is looked for above these, in turn

#if defined(__AVX512F__)
using Wide = __m512i;
inline Wide wide_zero() { return _mm512_setzero_si512(); }
inline Wide wide_add(Wide a, Wide b) { return _mm512_add_epi64(a, b); }
inline void wide_store(uint64_t* p, Wide a) { _mm512_storeu_si512(p, a); }
inline uint64_t wide_sum(Wide a) { return uint64_t(_mm512_reduce_add_epi64(a)); }
inline Wide whole(__m256 half) {  // + 2^52 leaves a whole number, rounded to even, in the low bits
    return _mm512_castpd_si512(_mm512_add_pd(_mm512_cvtps_pd(half), _mm512_set1_pd(0x1p52)));
}
inline Wide whole_low(V v) { return whole(_mm512_castps512_ps256(v)); }
inline Wide whole_high(V v) { return whole(_mm512_extractf32x8_ps(v, 1)); }
inline V most(V a, V b) { return _mm512_max_ps(a, b); }
inline float most_of(V a) { return _mm512_reduce_max_ps(a); }
inline uint32_t at_least(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ); }
inline uint32_t equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
#else
using Wide = __m256i;
inline Wide wide_zero() { return _mm256_setzero_si256(); }
inline Wide wide_add(Wide a, Wide b) { return _mm256_add_epi64(a, b); }
inline void wide_store(uint64_t* p, Wide a) { _mm256_storeu_si256((__m256i*)p, a); }
inline uint64_t wide_sum(Wide a) {
    uint64_t parts[4];
    wide_store(parts, a);
    return parts[0] + parts[1] + parts[2] + parts[3];
}
inline Wide whole(__m128 half) {  // + 2^52 leaves a whole number, rounded to even, in the low bits
    return _mm256_castpd_si256(_mm256_add_pd(_mm256_cvtps_pd(half), _mm256_set1_pd(0x1p52)));
}
inline Wide whole_low(V v) { return whole(_mm256_castps256_ps128(v)); }
inline Wide whole_high(V v) { return whole(_mm256_extractf128_ps(v, 1)); }
inline V most(V a, V b) { return _mm256_max_ps(a, b); }
inline float most_of(V a) {
    float parts[8], m = -INFINITY;
    _mm256_storeu_ps(parts, a);
    for (float x : parts) m = x > m ? x : m;
    return m;
}
inline uint32_t at_least(V a, V b) { return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GE_OQ))); }
inline uint32_t equal(V a, V b) { return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_EQ_OQ))); }
#endif

constexpr uint64_t whole_zero = 0x4330000000000000;  // the bits of 2^52

// exp(score) in units of 2^-40, not yet whole. No fused multiply-add: the operations of `masses` in
// reference_sampling.py, one for one.
inline V mass_of(V score) {
    const V x = most(score, set(-40.0f));
    const V n = nearest(mul(x, set(1.4426950216293335f)));
    V r = sub(x, mul(n, set(0.693359375f)));
    r = add(r, mul(n, set(0.00021219444170128554f)));
    V p = add(mul(r, set(float(1.0 / 5040))), set(float(1.0 / 720)));
    p = add(mul(p, r), set(float(1.0 / 120)));
    p = add(mul(p, r), set(float(1.0 / 24)));
    p = add(mul(p, r), set(float(1.0 / 6)));
    p = add(mul(p, r), set(0.5f));
    p = add(mul(p, r), set(1.0f));
    p = add(mul(p, r), set(1.0f));
    return floats(iadd(bits(p), left<23>(iadd(to_int(n), iset(40)))));
}

// One row at work, in scratch memory.
struct Row {
    int64_t size, blocks;
    float* logit;          // float32, minus infinity at holes and in the padding
    float* best_of;        // the best logit of each block
    uint64_t* mass_in;     // the mass of each block
    uint8_t* edited;       // of each block
    int32_t* id;           // candidates in id order, their scores and masses
    float* score;
    uint64_t* mass;
    uint64_t* histogram;
    int64_t count;         // candidates
    float best, temperature;
};

constexpr int64_t histogram_size = 2048;

struct Scratch {
    char* at;
    template <class T> T* take(int64_t n) {
        T* p = reinterpret_cast<T*>(at);
        at += round_up(n * int64_t(sizeof(T)), 64);
        return p;
    }
};

Row row_in(void* memory, int64_t size) {
    Scratch s{static_cast<char*>(memory)};
    Row r{};
    r.size = size;
    r.blocks = round_up(size, block) / block;
    r.logit = s.take<float>(r.blocks * block);
    r.best_of = s.take<float>(r.blocks + lanes);
    r.mass_in = s.take<uint64_t>(r.blocks);
    r.edited = s.take<uint8_t>(r.blocks);
    r.id = s.take<int32_t>(size + lanes);
    r.score = s.take<float>(size + lanes);
    r.mass = s.take<uint64_t>(size + 2 * lanes);
    r.histogram = s.take<uint64_t>(histogram_size);
    return r;
}

inline bool finite(float x) { return fabsf(x) <= FLT_MAX; }

void find_best(Row& r, int64_t b) {
    V m = load(r.logit + b * block);
    for (int64_t i = lanes; i < block; i += lanes) m = most(m, load(r.logit + b * block + i));
    r.best_of[b] = most_of(m);
}

// Widens a row; returns how many of its tokens' logits are not finite.
template <class T>
int64_t widen_row(Row& r, const LogitRows& from, int64_t row) {
    const T* x = static_cast<const T*>(from.logits) + row * from.row_step;
    int64_t wrong = 0;
    for (int64_t b = 0; b < r.blocks; b++) {
        float* y = r.logit + b * block;
        const int64_t n = r.size - b * block < block ? r.size - b * block : block;
        V m = set(-INFINITY);
        I size = izero();
        for (int64_t i = 0; i < n; i += lanes) {
            V v;
            if (n - i >= lanes) v = load(x + b * block + i);
            else {
                float part[lanes];
                for (int64_t k = 0; k < lanes; k++) part[k] = k < n - i ? scalar(x[b * block + i + k]) : -INFINITY;
                v = load(part);
            }
            store(y + i, v);
            m = most(m, v);
            size = imax_unsigned(size, iand(bits(v), iset(0x7fffffff)));
        }
        for (int64_t i = round_up(n, lanes); i < block; i += lanes) store(y + i, set(-INFINITY));
        r.best_of[b] = most_of(m);
        if (max_unsigned(size) >= 0x7f800000)
            for (int64_t i = 0; i < n; i++) wrong += !finite(y[i]) && (from.hole_count >= 0 || y[i] != -INFINITY);
    }
    for (int64_t i = 0; i < from.hole_count; i++) {
        float& y = r.logit[from.holes[i]];
        wrong -= !finite(y);
        y = -INFINITY;
        find_best(r, from.holes[i] / block);
    }
    return wrong;
}

int64_t widen_row(Row& r, const LogitRows& from, int64_t row) {
    if (from.type == Dtype::f32) return widen_row<float>(r, from, row);
    if (from.type == Dtype::bf16) return widen_row<bf16>(r, from, row);
    return widen_row<f16>(r, from, row);
}

// Returns how many values are NaN or plus infinity: nothing can be drawn beside them.
int64_t edit(Row& r, const DrawJob& job, const DrawRow& d) {
    if (d.first_edit == d.last_edit) return 0;
    int64_t wrong = 0;
    for (int64_t b = 0; b < r.blocks; b++) r.edited[b] = 0;
    for (int64_t i = d.first_edit; i < d.last_edit; i++) {
        wrong += !(job.edit_values[i] < INFINITY);
        r.logit[job.edit_ids[i]] = job.edit_values[i];
        r.edited[job.edit_ids[i] / block] = 1;
    }
    for (int64_t b = 0; b < r.blocks; b++)
        if (r.edited[b]) find_best(r, b);
    return wrong;
}

// Takes out the tokens whose bit is not set.
void allow(Row& r, const uint32_t* allowed) {
    constexpr int64_t per_block = block / 32;
    const int64_t words = round_up(r.size, 32) / 32;
    for (int64_t b = 0; b < r.blocks; b++) {
        const int64_t first = b * per_block, last = first + per_block < words ? first + per_block : words;
        uint32_t any = 0, all = ~uint32_t(0);
        for (int64_t w = first; w < last; w++) {
            any |= allowed[w];
            all &= allowed[w];
        }
        if (all == ~uint32_t(0)) continue;
        float* y = r.logit + b * block;
        if (!any)
            for (int64_t i = 0; i < block; i += lanes) store(y + i, set(-INFINITY));
        else
            for (int64_t w = first; w < last; w++)
                for (int k = 0; k < 32; k++)
                    if (!(allowed[w] >> k & 1)) r.logit[w * 32 + k] = -INFINITY;
        find_best(r, b);
    }
}

void find_best(Row& r) {
    r.best = -INFINITY;
    for (int64_t b = 0; b < r.blocks; b++) r.best = r.best_of[b] > r.best ? r.best_of[b] : r.best;
}

inline float score_of(const Row& r, float logit) { return (logit - r.best) / r.temperature; }
inline V scores(const Row& r, const float* logit) {
    return div(sub(load(logit), set(r.best)), set(r.temperature));
}

int64_t greedy(const Row& r) {
    int64_t b = 0;
    while (r.best_of[b] != r.best) b++;
    for (int64_t i = b * block;; i += lanes)
        if (const uint32_t found = equal(load(r.logit + i), set(r.best))) return i + __builtin_ctz(found);
}

// The mass of every block; returns their sum.
uint64_t weigh_blocks(Row& r) {
    uint64_t total = 0;
    for (int64_t b = 0; b < r.blocks; b++) {
        r.mass_in[b] = 0;
        if (score_of(r, r.best_of[b]) < weightless) continue;
        Wide sum = wide_zero();
        for (int64_t i = b * block; i < (b + 1) * block; i += lanes) {
            const V mass = mass_of(scores(r, r.logit + i));
            sum = wide_add(sum, wide_add(whole_low(mass), whole_high(mass)));
        }
        r.mass_in[b] = wide_sum(sum) - uint64_t(block) * whole_zero;  // modulo 2^64
        total += r.mass_in[b];
    }
    return total;
}

// Makes the tokens with at least that score the candidates, in id order.
void gather(Row& r, float least) {
    int64_t n = 0;
    const V bound = set(least);
    for (int64_t b = 0; b < r.blocks; b++) {
        if (!(score_of(r, r.best_of[b]) >= least)) continue;
        for (int64_t i = b * block; i < (b + 1) * block; i += lanes) {
            const V s = scores(r, r.logit + i);
            uint32_t in = at_least(s, bound);
            if (!in) continue;
            float part[lanes];
            store(part, s);
            for (; in; in &= in - 1) {
                const int k = __builtin_ctz(in);
                r.id[n] = int32_t(i) + k;
                r.score[n++] = part[k];
            }
        }
    }
    r.count = n;
}

void drop_below(Row& r, float least) {  // of the candidates, not yet weighed
    int64_t n = 0;
    for (int64_t i = 0; i < r.count; i++) {
        r.id[n] = r.id[i];
        r.score[n] = r.score[i];
        n += r.score[i] >= least;
    }
    r.count = n;
}

// The masses of the candidates; returns their sum.
uint64_t weigh(Row& r) {
    for (int64_t i = 0; i < r.count; i += lanes) {
        const V mass = mass_of(load(r.score + i));
        wide_store(r.mass + i, whole_low(mass));
        wide_store(r.mass + i + lanes / 2, whole_high(mass));
    }
    uint64_t total = 0;
    for (int64_t i = 0; i < r.count; i++) total += r.mass[i] -= whole_zero;
    return total;
}

// The score at which `needed` is reached, best first, counting 1 or the mass of each of n; -inf if it never is.
// Scores are not positive, so their bits without the sign are in falling order: eleven bits are settled at a
// time by the histogram of those that share the bits before.
float descend(Row& r, const float* score, const uint64_t* mass, int64_t n, uint64_t needed) {
    uint32_t settled = 0;
    constexpr int shifts[] = {21, 10, 0};
    for (const int shift : shifts) {
        const int above = shift == 10 ? 21 : 10;  // where the settled bits begin
        const uint32_t mask = shift == 0 ? 1023 : 2047;
        for (int64_t i = 0; i < histogram_size; i++) r.histogram[i] = 0;
        for (int64_t i = 0; i < n; i++) {
            uint32_t u;
            __builtin_memcpy(&u, score + i, 4);
            u &= 0x7fffffff;
            if (shift == 21 || u >> above == settled) r.histogram[u >> shift & mask] += mass ? mass[i] : 1;
        }
        uint32_t at = 0;
        for (; at <= mask && r.histogram[at] < needed; at++) needed -= r.histogram[at];
        if (at > mask) return -INFINITY;
        settled = shift == 21 ? at : settled << (above - shift) | at;
    }
    float floor;
    settled |= 0x80000000;
    __builtin_memcpy(&floor, &settled, 4);
    return floor;
}

// Makes at least the k best tokens and all that tie with them candidates; returns the score of the k-th.
float best_candidates(Row& r, int64_t k) {
    for (int64_t b = 0; b < r.blocks; b++) r.score[b] = score_of(r, r.best_of[b]);
    const float bound = descend(r, r.score, nullptr, r.blocks, uint64_t(k));  // k blocks have a better one
    gather(r, bound > -FLT_MAX ? bound : -FLT_MAX);
    const float floor = descend(r, r.score, nullptr, r.count, uint64_t(k));
    if (floor > -INFINITY) drop_below(r, floor);
    return floor;
}

inline uint64_t part_of(uint64_t total, uint64_t units, bool up) {
    const unsigned __int128 product = (unsigned __int128)total * units;
    return uint64_t((product + (up ? (uint64_t(1) << unit_bits) - 1 : 0)) >> unit_bits);
}

float nucleus_floor(Row& r, uint64_t top_p, bool cut) {
    uint64_t total, found = 0;
    if (cut) total = found = weigh(r);
    else total = weigh_blocks(r);
    uint64_t needed = part_of(total, top_p, true);
    if (needed < 1) needed = 1;
    for (int i = 0; !cut && found < needed; i++) {
        gather(r, windows[i]);
        found = weigh(r);
    }
    return descend(r, r.score, r.mass, r.count, needed);
}

int64_t draw_any(Row& r, uint64_t uniform) {
    uint64_t target = part_of(weigh_blocks(r), uniform, false);
    int64_t b = 0;
    for (; target >= r.mass_in[b]; b++) target -= r.mass_in[b];
    for (int64_t i = b * block;; i += lanes) {
        const V mass = mass_of(scores(r, r.logit + i));
        uint64_t part[lanes];
        wide_store(part, whole_low(mass));
        wide_store(part + lanes / 2, whole_high(mass));
        for (int k = 0; k < lanes; k++) {
            const uint64_t m = part[k] - whole_zero;
            if (target < m) return i + k;
            target -= m;
        }
    }
}

int64_t draw_candidate(const Row& r, float floor, uint64_t uniform) {
    uint64_t total = 0;
    for (int64_t i = 0; i < r.count; i++) total += r.score[i] >= floor ? r.mass[i] : 0;
    uint64_t target = part_of(total, uniform, false);
    for (int64_t i = 0;; i++) {
        const uint64_t m = r.score[i] >= floor ? r.mass[i] : 0;
        if (target < m) return r.id[i];
        target -= m;
    }
}

int64_t sample(Row& r, const DrawRow& d) {
    const bool cut = d.top_k > 0 && d.top_k < r.size, nucleus = d.top_p < uint64_t(1) << unit_bits;
    float floor = -INFINITY;
    if (cut) floor = best_candidates(r, d.top_k);
    const bool kept = floor > -INFINITY;  // else fewer than k are tokens at all, and all stay
    if (nucleus) {
        const float last = nucleus_floor(r, d.top_p, kept);
        floor = last > floor ? last : floor;
    }
    floor = d.least > floor ? d.least : floor;
    if (floor == -INFINITY) return draw_any(r, d.uniform);
    if (!kept && !nucleus) gather(r, floor);
    if (!nucleus) weigh(r);
    return draw_candidate(r, floor, d.uniform);
}

}  // namespace

void draw(const DrawJob& job, void* memory, int64_t first, int64_t last) {
    Row r = row_in(memory, job.from.size);
    for (int64_t i = first; i < last; i++) {
        DrawRow& d = job.draws[i];
        d.token = -1;
        d.not_finite = widen_row(r, job.from, d.row);
        if (d.not_finite) continue;
        d.not_finite = edit(r, job, d);
        if (d.not_finite) continue;
        if (d.allowed) allow(r, d.allowed);
        find_best(r);
        if (r.best == -INFINITY) {
            d.not_finite = r.size;
            continue;
        }
        r.temperature = d.temperature;
        d.token = d.temperature == 0 ? greedy(r) : sample(r, d);
    }
}

void likely(const LikelyJob& job, void* memory, int64_t first, int64_t last) {
    Row r = row_in(memory, job.from.size);
    r.temperature = 1;
    for (int64_t i = first; i < last; i++) {
        LikelyRow& l = job.rows[i];
        widen_row(r, job.from, l.row);
        find_best(r);
        const double log_total = log(double(weigh_blocks(r)) * 0x1p-40);
        l.value = double(score_of(r, r.logit[l.token])) - log_total;
        l.found = 0;
        if (!l.top) continue;
        const float floor = best_candidates(r, l.top);
        int32_t* ids = job.ids + l.first;
        double* values = job.values + l.first;
        int64_t better = 0;  // than the last of them, whose equals are taken by id
        for (int64_t k = 0; k < r.count; k++) better += r.score[k] > floor;
        int64_t ties = l.top - better;
        for (int64_t k = 0; k < r.count; k++) {
            if (!(r.score[k] > floor) && ties-- <= 0) continue;
            const double value = double(r.score[k]) - log_total;
            int64_t at = l.found++;
            for (; at > 0 && values[at - 1] < value; at--) {
                values[at] = values[at - 1];
                ids[at] = ids[at - 1];
            }
            values[at] = value;
            ids[at] = r.id[k];
        }
    }
}

}  // namespace qwenkit::QWENKIT_LANES
