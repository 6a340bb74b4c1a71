// Attention on AMX tiles: the cache's tiles are operands as they are, up to 32 queries are the other one.
#include "attention_flow.h"
#include "kernels.h"
#include "tile_config.h"

namespace qwenkit::amx {
namespace {

using namespace QWENKIT_LANES;

// Two vectors of small numbers as one line of bf16; halves round away from zero.
inline I line(V a, V b) {
    alignas(64) static constexpr uint16_t high_words[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21,
                                                            23, 25, 27, 29, 31, 33, 35, 37, 39, 41, 43,
                                                            45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    const I half = iset(0x8000);
    return _mm512_permutex2var_epi16(iadd(bits(a), half), _mm512_load_si512(high_words), iadd(bits(b), half));
}

inline const uint16_t* tile(const bf16* at, uint16_t*) { return &at->bits; }
inline const uint16_t* tile(const int8_t* at, uint16_t* room) {  // codes are exact in bf16
    for (int64_t i = 0; i < tile_cells; i += 32) {
        const V a = to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + i))));
        const V b = to_float(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(at + i + 16))));
        istore(room + i, line(a, b));
    }
    return room;
}

// C: cells of the cache. Tile registers as TileConfig says: 0-3 sums, 4 and 5 queries or weights (16 each).
template <class C>
class TileProducts {
  public:
    TileProducts(const Queries& q, const float* queries, float* scores, Scratch& scratch)
        : config_(q.task.count < 16 ? int(q.task.count) : 16, 64),
          channels_(q.job.layout.channels()),
          two_(q.task.count > 16),
          scores_(scores),
          queries_(scratch.take<uint16_t>(most_queries * channels_)),
          weights_(scratch.take<uint16_t>(segment_units * most_queries * unit_tokens)),
          room_(scratch.take<uint16_t>(4 * tile_cells)) {
        for (int64_t i = 0; i < q.task.count; i++)
            for (int64_t c = 0; c < channels_; c += 32) {
                const float* x = queries + i * channels_ + c;
                istore(queries_ + i / 16 * 16 * channels_ + c * 16 + i % 16 * 32, line(load(x), load(x + 16)));
            }
    }

    void scores(const Segment& s) const { two_ ? multiply_keys<2>(s) : multiply_keys<1>(s); }
    void operator()(int64_t u, int64_t i, const V* weights) const {
        istore(weights_ + (u * most_queries + i) * unit_tokens, line(weights[0], weights[1]));
    }
    void values(const Segment& s, float* outputs) const {
        two_ ? multiply_values<2>(s, outputs) : multiply_values<1>(s, outputs);
    }

  private:
    template <int GROUPS>
    void multiply_keys(const Segment& s) const {
        for (int64_t u = s.first; u < s.last; u++) {
            const C* keys = reinterpret_cast<const C*>(s.keys[u]);
            const uint16_t* x = queries_;
            _tile_zero(0);
            _tile_zero(1);
            if constexpr (GROUPS == 2) {
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int64_t c = 0; c < channels_; c += 32, x += tile_cells, keys += 2 * tile_cells) {
                _tile_loadd(4, x, 64);
                _tile_loadd(6, tile(keys, room_), 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, tile(keys + tile_cells, room_ + tile_cells), 64);
                _tile_dpbf16ps(1, 4, 7);
                if constexpr (GROUPS == 2) {
                    _tile_loadd(5, x + 16 * channels_, 64);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
            float* y = scores_ + u * most_queries * unit_tokens;
            _tile_stored(0, y, 128);
            _tile_stored(1, y + 16, 128);
            if constexpr (GROUPS == 2) {
                _tile_stored(2, y + 512, 128);
                _tile_stored(3, y + 528, 128);
            }
        }
    }

    template <int GROUPS>
    void multiply_values(const Segment& s, float* outputs) const {
        for (int64_t c = 0; c < channels_; c += 32) {
            _tile_zero(0);
            _tile_zero(1);
            if constexpr (GROUPS == 2) {
                _tile_zero(2);
                _tile_zero(3);
            }
            for (int64_t u = s.first; u < s.last; u++) {
                const C* values = reinterpret_cast<const C*>(s.values[u]) + c * 32;
                const uint16_t* x = weights_ + u * most_queries * unit_tokens;
                _tile_loadd(4, x, 64);
                _tile_loadd(6, tile(values, room_), 64);
                _tile_dpbf16ps(0, 4, 6);
                _tile_loadd(7, tile(values + tile_cells, room_ + tile_cells), 64);
                _tile_dpbf16ps(1, 4, 7);
                if constexpr (GROUPS == 2) {
                    _tile_loadd(5, x + 16 * unit_tokens, 64);
                    _tile_dpbf16ps(2, 5, 6);
                    _tile_dpbf16ps(3, 5, 7);
                }
            }
            const int64_t row = channels_ * 4;
            float* y = outputs + c;
            _tile_stored(0, y, row);
            _tile_stored(1, y + 16, row);
            if constexpr (GROUPS == 2) {
                _tile_stored(2, y + 16 * channels_, row);
                _tile_stored(3, y + 16 * channels_ + 16, row);
            }
        }
    }

    TileConfig config_;
    int64_t channels_;
    bool two_;
    float* scores_;
    uint16_t *queries_, *weights_, *room_;
};

}  // namespace

void attend(const PagedJob& job, const AttendTask& task, char* scratch) {
    if (job.layout.format == KvFormat::plain) run_task<bf16, TileProducts<bf16>>(job, task, scratch);
    else run_task<bf16, TileProducts<int8_t>>(job, task, scratch);
}

}  // namespace qwenkit::amx
