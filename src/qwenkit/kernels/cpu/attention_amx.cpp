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

inline void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

// Units that are needed later, asked for in small portions.
class Ahead {
  public:
    Ahead(const Queries& q, int64_t number, bool wanted) : bytes_(q.job.layout.head_bytes()) {
        const int64_t end = (q.position(q.task.count - 1) + unit_tokens) / unit_tokens, first = number * segment_units;
        for (int64_t u = first; wanted && u < end && u < first + segment_units; u++)
            units_[count_++] = q.job.unit(q.task.row, q.task.head, u).at;
    }
    int64_t lines() const { return count_ * bytes_ / 64; }
    void take(int64_t lines) {
        if (unit_ == count_) return;
        const char* at = units_[unit_] + taken_;
        for (int64_t i = 0; i < lines; i++) _mm_prefetch(at + i * 64, _MM_HINT_T1);
        taken_ += lines * 64;
        if (taken_ < bytes_) return;
        taken_ = 0;
        unit_++;
    }

  private:
    const char* units_[segment_units];
    int64_t bytes_, count_ = 0, unit_ = 0, taken_ = 0;
};

class TileTask {
  public:
    TileTask(const PagedJob& job, const AttendTask& task, char* memory)
        : q_{job, task},
          config_(task.count < 16 ? int(task.count) : 16, 64),
          channels_(job.layout.channels()),
          count_(task.count),
          late_(count_ <= most_queries && job.layout.format != KvFormat::plain),
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
        for (int64_t number = q_.task.first_segment; number < q_.task.last_segment; number++) {
            const Segment segment(q_, number, spare_);
            if (!q_.task.part && number + 1 == q_.task.last_segment)
                for (int64_t i = 0; i < count_; i++) fetch_to_write(q_.result<bf16>(i), q_.job.layout.head_dim);
            Ahead ahead(q_, number + 1, q_.task.cold);
            // A step is a pair of products, or a tile that is widened.
            const int64_t units = segment.last - segment.first, groups = round_up(count_, most_queries) / most_queries;
            const int64_t steps = units * channels_ / 16 * (late_ ? 2 : segment.scaled ? groups + 2 : groups);
            portion_ = (ahead.lines() + steps - 1) / steps;
            ahead_ = &ahead;
            find_tiles(segment);
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

    // Keys and values of a segment as bf16, or as codes that become it late.
    void find_tiles(const Segment& s) {
        const int64_t cells = channels_ * unit_tokens, tiles = channels_ / 16;
        const bool widen = s.scaled && !late_;
        for (int64_t u = s.first; u < s.last; u++) {
            uint16_t* room = room_ + u * cells;
            keys_[u] = widen ? widened(s.keys[u], tiles, room) : reinterpret_cast<const uint16_t*>(s.keys[u]);
            room += segment_units * cells;
            values_[u] = widen ? widened(s.values[u], tiles, room) : reinterpret_cast<const uint16_t*>(s.values[u]);
        }
    }
    const uint16_t* widened(const void* codes, int64_t tiles, uint16_t* room) const {
        for (int64_t i = 0; i < tiles; i++) {
            ahead_->take(portion_);
            widen_tile(static_cast<const char*>(codes) + i * tile_cells, room + i * tile_cells);
        }
        return room;
    }
    // Tiles of a unit that are multiplied after the next one's were asked for: what was just stored is not yet to
    // be had as a tile.
    const uint16_t* tiles_of(const uint16_t* unit, int64_t first, int64_t count, int64_t u) const {
        if (!late_) return unit + first * tile_cells;
        return widened(reinterpret_cast<const char*>(unit) + first * tile_cells, count,
                       room_ + u % 2 * channels_ * unit_tokens);
    }

    // What queries first to first + 31 see of a segment; no units, if nothing.
    Seen see(const Segment& s, int64_t first) const {
        const int64_t count = count_ - first < most_queries ? count_ - first : most_queries;
        const int64_t oldest = q_.job.window ? positions_[first] + 1 - q_.job.window - s.begin : 0;
        const int64_t newest = positions_[first + count - 1] - s.begin;
        Seen seen{first, count, s.first, newest < 0 ? 0 : newest / unit_tokens + 1};
        if (seen.last > s.last) seen.last = s.last;
        if (oldest > 0 && oldest / unit_tokens > seen.first) seen.first = oldest / unit_tokens;
        if (seen.first > seen.last) seen.first = seen.last;
        return seen;
    }

    // Queries first to first + 31 and what they see of a segment.
    void attend(const Segment& s, int64_t first) {
        const Seen seen = see(s, first);
        if (seen.first == seen.last) {
            if (q_.task.part) nothing(part_of(s.number, first), seen.count);
            return;
        }
        const Weigher weigher{s, seen, scores_, positions_ + first, query_sums_ + first, q_.job.window, scale()};
        seen.count > 16 ? multiply_keys<2>(seen) : multiply_keys<1>(seen);
        weigher.run(own_);
        int64_t c = 0;
        if (seen.count > 16)
            for (; c < channels_; c += 32) multiply_values<2, 2>(seen, c);
        for (; c + 64 <= channels_; c += 64) multiply_values<1, 4>(seen, c);
        for (; c < channels_; c += 32) multiply_values<1, 2>(seen, c);
        if (q_.task.part) {
            give(own_, part_of(s.number, first), seen.count, channels_);
        } else if (begun_ > first) {
            fold(own_, view(total_, first), seen.count, channels_);
        } else {
            begin(own_, view(total_, first), seen.count, channels_);
            begun_ = first + seen.count;
        }
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
    Part part_of(int64_t segment, int64_t first) const {
        float* part = q_.task.part + (segment - q_.task.first_segment) * q_.job.part_floats(count_);
        return view(Part(part, count_, channels_), first);
    }
    void nothing(const Part& part, int64_t count) const {
        clear(part, count, channels_);
        for (int64_t i = 0; i < count; i++) part.offsets[i] = 0;
    }

    // HALVES of 16 queries by the 32 keys of each unit.
    template <int HALVES>
    void multiply_keys(const Seen& seen) const {
        const int64_t tiles = channels_ / 16;
        const uint16_t* next = tiles_of(keys_[seen.first], 0, tiles, seen.first);
        for (int64_t u = seen.first; u < seen.last; u++) {
            const uint16_t *x = queries_ + seen.query * channels_, *keys = next;
            if (u + 1 < seen.last) next = tiles_of(keys_[u + 1], 0, tiles, u + 1);
            zero_sums();
            for (int64_t c = 0; c < channels_; c += 32, x += tile_cells, keys += 2 * tile_cells) {
                if (!late_) ahead_->take(portion_);
                _tile_loadd(4, x, 64);
                _tile_loadd(6, keys, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, keys + tile_cells, 64);
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

    // By COLUMNS tiles of the values of each unit, from channel c on.
    template <int HALVES, int COLUMNS>
    void multiply_values(const Seen& seen, int64_t c) const {
        static_assert(HALVES * COLUMNS <= 4);
        const uint16_t* next = tiles_of(values_[seen.first], c / 16, COLUMNS, seen.first);
        zero_sums();
        for (int64_t u = seen.first; u < seen.last; u++) {
            const uint16_t* values = next;
            if (u + 1 < seen.last) next = tiles_of(values_[u + 1], c / 16, COLUMNS, u + 1);
            if (!late_) ahead_->take(portion_ * COLUMNS / 2);
            const float* x = scores_ + u * 16;  // weights in place of scores
            _tile_loadd(4, x, score_row * 4);
            _tile_loadd(6, values, 64);
            _tile_dpbf16ps(0, 4, 6);
            _tile_loadd(7, values + tile_cells, 64);
            _tile_dpbf16ps(1, 4, 7);
            if constexpr (HALVES == 2) {
                _tile_loadd(5, x + 16 * score_row, score_row * 4);
                _tile_dpbf16ps(2, 5, 6);
                _tile_dpbf16ps(3, 5, 7);
            }
            if constexpr (COLUMNS == 4) {
                _tile_loadd(6, values + 2 * tile_cells, 64);
                _tile_dpbf16ps(2, 4, 6);
                _tile_loadd(7, values + 3 * tile_cells, 64);
                _tile_dpbf16ps(3, 4, 7);
            }
        }
        const int64_t row = channels_ * 4;
        float* y = own_.outputs + c;
        _tile_stored(0, y, row);
        _tile_stored(1, y + 16, row);
        if constexpr (HALVES == 2) {
            _tile_stored(2, y + 16 * channels_, row);
            _tile_stored(3, y + 16 * channels_ + 16, row);
        }
        if constexpr (COLUMNS == 4) {
            _tile_stored(2, y + 32, row);
            _tile_stored(3, y + 48, row);
        }
    }

    const Queries q_;
    const TileConfig config_;
    const int64_t channels_, count_;
    const bool late_;  // codes are read once, by few queries: as tiles they need not leave the first cache
    Scratch scratch_;
    int32_t* positions_;
    uint16_t* queries_;
    float *query_sums_, *scores_;
    const Part own_, total_;
    char* spare_;
    uint16_t* room_;
    Ahead* ahead_ = nullptr;
    int64_t portion_ = 0;
    int64_t begun_ = 0;  // queries that have a total
    const uint16_t *keys_[segment_units], *values_[segment_units];
};

}  // namespace

void attend(const PagedJob& job, const AttendTask& task, char* scratch) { TileTask(job, task, scratch).run(); }

}  // namespace qwenkit::amx
