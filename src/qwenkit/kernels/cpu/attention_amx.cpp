// Attention on AMX tiles over keys and values of bf16: the cache's tiles are one operand, 32 queries the other.
#include "attention_tiles.h"
#include "kernels.h"

namespace qwenkit::amx {
namespace {

class HalfTiles {
  public:
    static constexpr int64_t most = most_queries;

    HalfTiles(const Queries& q, const int32_t* positions, Scratch& scratch)
        : q_(q),
          positions_(positions),
          config_(q.task.count < 16 ? int(q.task.count) : 16, 64),
          channels_(q.job.layout.channels()),
          queries_(scratch.take<uint16_t>(round_up(q.task.count, most) * channels_)),
          scores_(scratch.take<float>(most * score_row)) {
        for (float& factor : factors_) factor = 1.44269504f / __builtin_sqrtf(float(q.job.layout.head_dim));
        read();
    }

    void begin(const Segment& s, Ahead& ahead) {
        const int64_t groups = round_up(q_.task.count, most) / most;
        ahead.spread((s.last - s.first) * channels_ / 16 * groups);  // pairs of products
        ahead_ = &ahead;
    }

    void attend(const Segment& s, const Seen& seen, const Part& own) const {
        seen.count > 16 ? multiply_keys<2>(s, seen) : multiply_keys<1>(s, seen);
        for (int64_t i = 0; i < seen.count; i += 16) {
            V some[16];
            alignas(64) float down[16];
            for (int64_t j = 0; j < 16; j++) some[j] = i + j < seen.count ? look(s, seen, i + j) : set(unseen);
            crown(some, factors_, own.maxima + i, down);
            for (int64_t j = 0; j < 16; j++) some[j] = i + j < seen.count ? weigh(seen, i + j, set(down[j])) : zero();
            store(own.sums + i, total(some));
            store(own.offsets + i, zero());
        }
        int64_t c = 0;
        if (seen.count > 16)
            for (; c < channels_; c += 32) multiply_values<2, 2>(s, seen, c, own);
        for (; c + 64 <= channels_; c += 64) multiply_values<1, 4>(s, seen, c, own);
        for (; c < channels_; c += 32) multiply_values<1, 2>(s, seen, c, own);
    }
    V output(const Part& own, int64_t i, int64_t c) const { return load(own.outputs + i * channels_ + c); }

  private:
    // Queries as tiles of 16 by 32 channels, those of 16 queries one after the other.
    void read() {
        const int64_t d = q_.job.layout.head_dim, count = q_.task.count;
        alignas(64) bf16 turned[most_channels];
        for (int64_t c = d; c < channels_; c++) turned[c] = bf16{};
        for (int64_t i = 0; i < count && i < 8; i++) fetch(q_.source<bf16>(i), d);
        for (int64_t i = 0; i < count; i++) {
            if (i + 8 < count) fetch(q_.source<bf16>(i + 8), d);
            q_.turn(i, turned);
            uint16_t* line = queries_ + i / 16 * 16 * channels_ + i % 16 * 32;
            // As they were stored, by halves: a load of both would have to wait for them.
            for (int64_t c = 0; c < channels_; c += 16) {
                const __m256i half = _mm256_load_si256(reinterpret_cast<const __m256i*>(turned + c));
                _mm256_store_si256(reinterpret_cast<__m256i*>(line + c / 32 * tile_cells + c % 32), half);
            }
        }
    }

    // HALVES of 16 queries by the 32 keys of each unit.
    template <int HALVES>
    void multiply_keys(const Segment& s, const Seen& seen) const {
        for (int64_t u = seen.first; u < seen.last; u++) {
            const uint16_t* x = queries_ + seen.query * channels_;
            const uint16_t* keys = reinterpret_cast<const uint16_t*>(s.keys[u]);
            zero_sums();
            for (int64_t c = 0; c < channels_; c += 32, x += tile_cells, keys += tile_cells) {
                ahead_->take();
                _tile_loadd(4, x, 64);
                _tile_loadd(6, keys, 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, keys + channels_ * 16, 64);
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

    // The largest scores of a query, lane by lane; those masked go back.
    V look(const Segment& s, const Seen& seen, int64_t i) const {
        const int64_t newest = positions_[seen.query + i] - s.begin;
        const int64_t oldest = q_.job.window ? newest + 1 - q_.job.window : 0;
        V top[2] = {set(unseen), set(unseen)};
        each_unit(seen, oldest, newest, [&](int64_t u, bool partly) {
            for (int64_t h = 0; h < 2; h++) {
                const int64_t key = u * unit_tokens + h * 16;
                float* at = scores_ + i * score_row + key;
                V v = load(at);
                if (partly) {
                    v = between(v, set(unseen), oldest - key, newest - key);
                    store(at, v);
                }
                top[h] = max(top[h], v);
            }
        });
        return max(top[0], top[1]);
    }

    // Weights as bf16 at the start of a query's scores. Returns their sums, lane by lane.
    V weigh(const Seen& seen, int64_t i, V down) const {
        const V factor = set(factors_[0]);
        V totals[2] = {zero(), zero()};
        float* row = scores_ + i * score_row;
        for (int64_t u = seen.first; u < seen.last; u++) {
            V p[2];
            for (int64_t h = 0; h < 2; h++) {
                p[h] = weight(fma(load(row + u * unit_tokens + h * 16), factor, down));
                totals[h] = add(totals[h], p[h]);
            }
            istore(row + u * 16, I(_mm512_cvtne2ps_pbh(p[1], p[0])));
        }
        return add(totals[0], totals[1]);
    }

    // By COLUMNS tiles of the values of each unit, from channel c on.
    template <int HALVES, int COLUMNS>
    void multiply_values(const Segment& s, const Seen& seen, int64_t c, const Part& own) const {
        static_assert(HALVES * COLUMNS <= 4);
        zero_sums();
        for (int64_t u = seen.first; u < seen.last; u++) {
            const uint16_t* values = reinterpret_cast<const uint16_t*>(s.values[u]) + c * 32;
            for (int i = 0; i < COLUMNS / 2; i++) ahead_->take();
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
        float* y = own.outputs + c;
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

    const Queries& q_;
    const int32_t* positions_;
    const TileConfig config_;
    const int64_t channels_;
    uint16_t* queries_;
    float* scores_;
    float factors_[16];  // from q k to exponents of 2
    Ahead* ahead_ = nullptr;
};

}  // namespace

void attend(const PagedJob& job, const AttendTask& task, char* scratch) {
    if (job.layout.codes()) attend_codes(job, task, scratch);
    else TileTask<HalfTiles>(job, task, scratch).run();
}

}  // namespace qwenkit::amx
