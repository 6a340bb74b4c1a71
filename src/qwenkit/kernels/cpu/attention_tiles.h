// What attention on tiles does whatever the cache holds: the way of a task through its segments, and softmax.
//
// A segment's scores of some queries fit the first cache, its keys and values the second, where the next queries
// of a task find them. What multiplies is a Form: attention_amx.cpp has that of bf16, attention_int8_amx.cpp that
// of codes.
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

inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
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

// Maxima of 16 queries from their largest scores, lane by lane, and what takes those to 0 as exponents of 2.
inline void crown(const V (&tops)[16], const float* factors, float* maxima, float* down) {
    const V most = across(tops, [](V a, V b) { return max(a, b); });
    const __mmask16 none = _mm512_cmp_ps_mask(most, set(unseen), _CMP_EQ_OQ);
    const V exponents = mul(most, load(factors));
    store(maxima, _mm512_mask_mov_ps(exponents, none, set(unseen)));
    store(down, _mm512_mask_mov_ps(sub(zero(), exponents), none, zero()));
}
inline V total(const V (&v)[16]) {
    return across(v, [](V a, V b) { return add(a, b); });
}

// unit(u, partly) for the units `seen`, in order; partly: some keys are older or newer than a query sees.
template <class Unit>
inline void each_unit(const Seen& seen, int64_t oldest, int64_t newest, Unit&& unit) {
    int64_t u = seen.first;
    for (; u < seen.last && u * unit_tokens < oldest; u++) unit(u, true);
    for (; u < seen.last && u * unit_tokens + unit_tokens - 1 <= newest; u++) unit(u, false);
    for (; u < seen.last; u++) unit(u, true);
}

// Units that are needed later, asked for in small portions.
class Ahead {
  public:
    Ahead(const Queries& q, int64_t number, bool wanted) : bytes_(q.job.layout.head_bytes()) {
        const int64_t end = (q.position(q.task.count - 1) + unit_tokens) / unit_tokens, first = number * segment_units;
        for (int64_t u = first; wanted && u < end && u < first + segment_units; u++)
            units_[count_++] = q.job.unit(q.task.row, q.task.head, u).at;
    }
    void spread(int64_t steps) { portion_ = (count_ * bytes_ / 64 + steps - 1) / steps; }
    void take() {
        if (unit_ == count_) return;
        const char* at = units_[unit_] + taken_;
        for (int64_t i = 0; i < portion_; i++) _mm_prefetch(at + i * 64, _MM_HINT_T1);
        taken_ += portion_ * 64;
        if (taken_ < bytes_) return;
        taken_ = 0;
        unit_++;
    }

  private:
    const char* units_[segment_units];
    int64_t bytes_, count_ = 0, unit_ = 0, taken_ = 0, portion_ = 0;
};

// Form: most, queries it takes together; begin(segment, ahead), then for some of the queries at a time
// attend(segment, seen, own), which gives their sums but not their outputs: output(own, i, c) has those of query i
// from channel c on.
template <class Form>
class TileTask {
  public:
    TileTask(const PagedJob& job, const AttendTask& task, char* memory)
        : q_{job, task},
          channels_(job.layout.channels()),
          count_(task.count),
          scratch_(memory),
          positions_(scratch_.take<int32_t>(round_up(count_, most_queries))),
          own_(scratch_.take<float>(job.part_floats(most_queries)), most_queries, channels_),
          total_(scratch_.take<float>(task.part ? 0 : job.part_floats(count_)), count_, channels_),
          spare_(scratch_.take<char>(job.layout.spare_bytes())),
          form_(q_, positions_, scratch_) {
        for (int64_t i = 0; i < count_; i++) positions_[i] = int32_t(q_.position(i));
    }

    void run() {
        for (int64_t number = q_.task.first_segment; number < q_.task.last_segment; number++) {
            const Segment segment(q_, number, spare_);
            if (!q_.task.part && number + 1 == q_.task.last_segment)
                for (int64_t i = 0; i < count_; i++) fetch_to_write(q_.result<bf16>(i), q_.job.layout.head_dim);
            Ahead ahead(q_, number + 1, q_.task.cold);
            form_.begin(segment, ahead);
            for (int64_t i = 0; i < count_; i += Form::most) attend(segment, i);
        }
        if (!q_.task.part) finish<bf16>(q_, total_);
    }

  private:
    // What some queries from the first on see of a segment; no units, if nothing.
    Seen see(const Segment& s, int64_t first) const {
        const int64_t count = count_ - first < Form::most ? count_ - first : Form::most;
        const int64_t oldest = q_.job.window ? positions_[first] + 1 - q_.job.window - s.begin : 0;
        const int64_t newest = positions_[first + count - 1] - s.begin;
        Seen seen{first, count, s.first, newest < 0 ? 0 : newest / unit_tokens + 1};
        if (seen.last > s.last) seen.last = s.last;
        if (oldest > 0 && oldest / unit_tokens > seen.first) seen.first = oldest / unit_tokens;
        if (seen.first > seen.last) seen.first = seen.last;
        return seen;
    }

    void attend(const Segment& s, int64_t first) {
        const Seen seen = see(s, first);
        if (seen.first == seen.last) {
            if (q_.task.part) nothing(part_of(s.number, first), seen.count);
            return;
        }
        form_.attend(s, seen, own_);
        auto output = [&](int64_t i, int64_t c) { return form_.output(own_, i, c); };
        if (q_.task.part) {
            give(own_, part_of(s.number, first), seen.count, channels_, output);
        } else if (begun_ > first) {
            fold(own_, view(total_, first), seen.count, channels_, output);
        } else {
            begin(own_, view(total_, first), seen.count, channels_, output);
            begun_ = first + seen.count;
        }
    }

    Part view(const Part& p, int64_t first) const {
        Part part = p;
        part.outputs += first * channels_;
        part.maxima += first;
        part.sums += first;
        part.offsets += first;
        return part;
    }
    Part part_of(int64_t segment, int64_t first) const {
        float* part = q_.task.part + (segment - q_.task.first_segment) * q_.job.part_floats(count_);
        return view(Part(part, count_, channels_), first);
    }
    void nothing(const Part& part, int64_t count) const {
        clear(part, count, channels_);
        for (int64_t i = 0; i < count; i++) part.offsets[i] = 0;
    }

    const Queries q_;
    const int64_t channels_, count_;
    Scratch scratch_;
    int32_t* positions_;
    const Part own_, total_;
    char* spare_;
    Form form_;
    int64_t begun_ = 0;  // queries that have a total
};

}  // namespace qwenkit::amx
