// Attention on AMX tiles: the cache's tiles are operands as they are, 32 queries are the other one.
//
// A segment's scores of 32 queries fit the first cache, its keys and values the second, where the next 32
// queries of a task find them.
#include "attention_flow.h"
#include "attention_tiles.h"
#include "kernels.h"

namespace qwenkit::amx {
namespace {

using namespace QWENKIT_LANES;

// Two 16-query halves by two 16-column tiles, or one half by four.
inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

class TileTask {
  public:
    TileTask(const PagedJob& job, const AttendTask& task, char* memory)
        : q_{job, task},
          config_(task.count < 16 ? int(task.count) : 16, 64),
          channels_(job.layout.channels()),
          count_(task.count),
          scratch_(memory),
          positions_(scratch_.take<int32_t>(round_up(count_, most_queries))),
          queries_(scratch_.take<uint16_t>(round_up(count_, most_queries) * channels_)),
          query_sums_(scratch_.take<float>(round_up(count_, most_queries))),
          scores_(scratch_.take<float>(most_queries * score_row)),
          own_(scratch_.take<float>(job.part_floats(most_queries)), most_queries, channels_),
          total_(scratch_.take<float>(task.part ? 0 : job.part_floats(count_)), count_, channels_),
          spare_(scratch_.take<char>(job.layout.side_bytes())) {
        const bool codes = job.layout.format != KvFormat::plain;
        room_ = scratch_.take<uint16_t>(codes ? 2 * segment_tokens * channels_ : 0);
        for (int64_t i = 0; i < count_; i++) positions_[i] = int32_t(q_.position(i));
        read();
    }

    void run() {
        if (!q_.task.part) clear(total_, count_, channels_);
        for (int64_t number = q_.task.first_segment; number < q_.task.last_segment; number++) {
            const Segment segment(q_, number, spare_);
            find_tiles(segment);
            if (!q_.task.part && number + 1 == q_.task.last_segment)
                for (int64_t i = 0; i < count_; i++) fetch_to_write(q_.result<bf16>(i), q_.job.layout.head_dim);
            for (int64_t i = 0; i < count_; i += most_queries) attend(segment, i);
        }
        if (!q_.task.part) finish<bf16>(q_, total_);
    }

  private:
    // Queries as tiles of 16 by 32 channels, those of 16 queries one after the other.
    void read() {
        const PagedJob& job = q_.job;
        const int64_t d = job.layout.head_dim;
        alignas(64) bf16 turned[most_channels];
        for (int64_t c = d; c < channels_; c++) turned[c] = bf16{};
        for (int64_t i = 0; i < count_ && i < 8; i++) fetch(q_.source<bf16>(i), d);
        for (int64_t i = 0; i < count_; i++) {
            if (i + 8 < count_) fetch(q_.source<bf16>(i + 8), d);
            q_.turn(i, turned);
            uint16_t* line = queries_ + i / 16 * 16 * channels_ + i % 16 * 32;
            // As they were stored, by halves: a load of both would have to wait for them.
            for (int64_t c = 0; c < channels_; c += 16) {
                const __m256i half = _mm256_load_si256(reinterpret_cast<const __m256i*>(turned + c));
                _mm256_store_si256(reinterpret_cast<__m256i*>(line + c / 32 * tile_cells + c % 32), half);
            }
            if (job.layout.format != KvFormat::affine) continue;
            V all = zero();
            for (int64_t c = 0; c < channels_; c += lanes) all = add(all, load(turned + c));
            query_sums_[i] = sum(all);
        }
    }

    // Keys and values of a segment as bf16; codes are exact in it.
    void find_tiles(const Segment& s) {
        const int64_t cells = channels_ * unit_tokens;
        for (int64_t u = s.first; u < s.last; u++) {
            if (s.scaled) {
                uint16_t *keys = room_ + u * cells, *values = keys + segment_units * cells;
                const char* next = u + 1 < s.last ? s.keys[u + 1] : s.keys[u];
                widen_tiles(s.keys[u], keys, cells, next);
                widen_tiles(s.values[u], values, cells, next + cells);
                keys_[u] = keys;
                values_[u] = values;
            } else {
                keys_[u] = reinterpret_cast<const uint16_t*>(s.keys[u]);
                values_[u] = reinterpret_cast<const uint16_t*>(s.values[u]);
            }
        }
    }

    // Queries first to first + 31 and what they see of a segment.
    void attend(const Segment& s, int64_t first) {
        const int64_t count = count_ - first < most_queries ? count_ - first : most_queries;
        const int64_t newest = positions_[first + count - 1] - s.begin, window = q_.job.window;
        Seen seen{first, count, s.first, newest / unit_tokens + 1};
        if (seen.last > s.last) seen.last = s.last;
        if (window && (positions_[first] + 1 - window - s.begin) / unit_tokens > seen.first)
            seen.first = (positions_[first] + 1 - window - s.begin) / unit_tokens;
        if (newest < 0 || seen.first >= seen.last) {
            if (q_.task.part) nothing(first, count);
            return;
        }
        const Weigher weigher{s, seen, scores_, positions_ + first, query_sums_ + first, window, scale()};
        if (count > 16) {
            multiply_keys<2>(seen);
            weigher.run(own_);
            multiply_values<2>(seen);
        } else {
            multiply_keys<1>(seen);
            weigher.run(own_);
            multiply_values<1>(seen);
        }
        if (q_.task.part) give(own_, part_of(first), count, channels_);
        else fold(own_, total_of(first), count, channels_);
    }

    float scale() const { return 1.44269504f / __builtin_sqrtf(float(q_.job.layout.head_dim)); }
    Part view(const Part& p, int64_t first) const {
        Part part = p;
        part.outputs += first * channels_;
        part.maxima += first;
        part.sums += first;
        part.offsets += first;
        return part;
    }
    Part total_of(int64_t first) const { return view(total_, first); }
    Part part_of(int64_t first) const { return view(Part(q_.task.part, count_, channels_), first); }
    void nothing(int64_t first, int64_t count) const {
        const Part part = part_of(first);
        clear(part, count, channels_);
        for (int64_t i = 0; i < count; i++) part.offsets[i] = 0;
    }

    // HALVES of 16 queries by the 32 keys of each unit.
    template <int HALVES>
    void multiply_keys(const Seen& seen) const {
        for (int64_t u = seen.first; u < seen.last; u++) {
            const uint16_t *x = queries_ + seen.query * channels_, *keys = keys_[u];
            zero_sums();
            for (int64_t c = 0; c < channels_; c += 32, x += tile_cells, keys += 2 * tile_cells) {
                _tile_loadd(4, x, 64);
                _tile_stream_loadd(6, keys, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_stream_loadd(7, keys + tile_cells, 64);
                _tile_dpbf16ps(1, 4, 7);
                if constexpr (HALVES == 2) {
                    _tile_loadd(5, x + 16 * channels_, 64);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
            float* y = scores_ + u * unit_tokens;
            _tile_stored(0, y, score_row * 4);
            _tile_stored(1, y + 16, score_row * 4);
            if constexpr (HALVES == 2) {
                _tile_stored(2, y + 16 * score_row, score_row * 4);
                _tile_stored(3, y + 16 * score_row + 16, score_row * 4);
            }
        }
    }

    template <int HALVES>
    void multiply_values(const Seen& seen) const {
        const int64_t row = channels_ * 4;
        for (int64_t c = 0; c < channels_; c += 32) {
            zero_sums();
            for (int64_t u = seen.first; u < seen.last; u++) {
                const uint16_t* values = values_[u] + c * 32;
                const float* x = scores_ + u * 16;  // weights in place of scores
                _tile_loadd(4, x, score_row * 4);
                _tile_stream_loadd(6, values, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_stream_loadd(7, values + tile_cells, 64);
                _tile_dpbf16ps(1, 4, 7);
                if constexpr (HALVES == 2) {
                    _tile_loadd(5, x + 16 * score_row, score_row * 4);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
            float* y = own_.outputs + c;
            _tile_stored(0, y, row);
            _tile_stored(1, y + 16, row);
            if constexpr (HALVES == 2) {
                _tile_stored(2, y + 16 * channels_, row);
                _tile_stored(3, y + 16 * channels_ + 16, row);
            }
        }
    }

    const Queries q_;
    const TileConfig config_;
    const int64_t channels_, count_;
    Scratch scratch_;
    int32_t* positions_;
    uint16_t* queries_;
    float *query_sums_, *scores_;
    const Part own_, total_;
    char* spare_;
    uint16_t* room_;
    const uint16_t *keys_[segment_units], *values_[segment_units];
};

}  // namespace

void attend(const PagedJob& job, const AttendTask& task, char* scratch) { TileTask(job, task, scratch).run(); }

}  // namespace qwenkit::amx
