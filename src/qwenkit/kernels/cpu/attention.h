// Attention over keys and values kept in blocks: where they lie, and the work of one layer in one step.
//
// A unit is 32 tokens of a block. The keys of a unit and head are two matrices [channels][16 tokens], its values
// one [32 tokens][channels]; all are cut into tiles of 32 rows by 16 columns, which vectors read along the
// columns and AMX takes as they are. bf16 tiles keep two rows side by side, [16][16 columns][2], those of 8 bits
// four, [8][16 columns][4]. A unit of 4 bits (nibbles.h) becomes tiles of the type computed in when it is read.
//
// A query's sums are made in an order that depends on its own position alone: channels upwards, keys by
// segments of 256 positions, each with one maximum. So its bits do not depend on what else is computed.
#pragma once
#include "dtype.h"

namespace qwenkit {

constexpr int64_t unit_tokens = 32;
constexpr int64_t segment_units = 8;
constexpr int64_t segment_tokens = segment_units * unit_tokens;
constexpr int64_t tile_cells = 512;
constexpr int64_t most_queries = 32;  // computed together
constexpr int64_t most_tile_queries = 4 * most_queries;  // of one task on tiles; elsewhere most_queries
constexpr int64_t most_channels = 1024;

enum class KvFormat : int { plain = 0, symmetric = 1, affine = 2, nibbles = 3 };  // symmetric: no minimum

struct PagedLayout {
    int64_t blocks, block_size;  // block_size in tokens, a multiple of unit_tokens
    int64_t heads, kv_heads, head_dim;
    Dtype type;
    KvFormat format;
    // Of 8 and 4 bits: steps, then center of the keys of each head, in whole tiles of channels. Of 8 bits, steps are
    // powers of two by which keys are divided and queries multiplied, and there is no center.
    const float* key_form = nullptr;
    // Of 4 bits alone: the angles of each unit, [head_dim / 2][cos, sin][32 tokens], and whether this layer keeps
    // them, for itself and later ones.
    int16_t* angles = nullptr;
    bool keeps_angles = false;

    const float* key_steps(int64_t head) const { return key_form + head * 2 * channels(); }
    const float* key_center(int64_t head) const { return key_steps(head) + channels(); }
    int64_t angle_count() const { return head_dim / 2 * 2 * unit_tokens; }  // of a unit
    bool codes() const { return format == KvFormat::symmetric || format == KvFormat::affine; }  // of 8 bits

    int64_t group() const { return heads / kv_heads; }
    int64_t channels() const { return round_up(head_dim, 32); }  // whole tiles; those past head_dim stay zero
    int64_t units_per_block() const { return block_size / unit_tokens; }
    int64_t cell_bytes() const { return codes() ? 1 : size_of(type); }  // where it is multiplied
    int64_t tile_bytes() const { return channels() * unit_tokens * cell_bytes(); }  // keys or values
    int64_t side_bytes() const {  // the same where they are kept; of 4 bits with scales and minima
        return format == KvFormat::nibbles ? (channels() / 2 + channels() / 32 * 4) * unit_tokens : tile_bytes();
    }
    // Keys, values; of 8 bits then 32 scales of keys and of values; then as many minima.
    int64_t head_bytes() const {
        return 2 * side_bytes() + (codes() ? int(format) * 2 * unit_tokens * int64_t(sizeof(float)) : 0);
    }
    // Room for units of a segment that are not multiplied where they are kept: the last one's values, or all of 4 bits.
    int64_t spare_bytes() const { return (format == KvFormat::nibbles ? 2 * segment_units : 1) * tile_bytes(); }
    int64_t block_bytes() const { return units_per_block() * kv_heads * head_bytes(); }
    int64_t bytes() const { return blocks * block_bytes(); }
    // Where unit `place` of the cache keeps a head. Each unit starts with another one: at the same place in every
    // unit, a head of a power of two bytes would fall into few sets of the second cache.
    int64_t offset(int64_t place, int64_t head) const {
        return (place * kv_heads + (head + place) % kv_heads) * head_bytes();
    }
};

// Keys and values of one unit and head.
struct KvUnit {
    char* at;
    const PagedLayout* layout;

    char* keys() const { return at; }
    char* values() const { return at + layout->side_bytes(); }
    float* key_scales() const { return reinterpret_cast<float*>(at + 2 * layout->side_bytes()); }
    float* value_scales() const { return key_scales() + unit_tokens; }
    float* key_minima() const { return key_scales() + 2 * unit_tokens; }
    float* value_minima() const { return key_scales() + 3 * unit_tokens; }
};

struct KeepTask {  // tokens of a row, from `first` up to `last` counted in the step, of one unit
    int32_t row, head, first, last;
};

// Queries of a row that share a key head, numbered token by token, heads of the group within. `part`: where
// sums of its segments go, if another task combines them; else null, and the result is written.
struct AttendTask {
    int32_t row, head, first, count;
    int32_t first_segment, last_segment;  // last: one past
    int32_t keep;  // the KeepTask to carry out first, or -1
    float* part;
    bool cold;  // no task before it reads the same
};

struct PagedJob {
    PagedLayout layout;
    char* memory;
    const void* qkv;           // [tokens][heads + 2 kv_heads][head_dim]
    const float *cos, *sin;    // [tokens][rotary]
    int64_t rotary;
    const float* logn;         // [tokens] or null
    const int32_t *starts, *offsets, *tables;  // of RaggedRows; tables [rows][width]
    int64_t rows, width;
    int64_t window;            // 0: none
    void* out;                 // [tokens][heads][head_dim]

    int64_t place(int64_t row, int64_t index) const {
        const int64_t per = layout.units_per_block();
        return int64_t(tables[row * width + index / per]) * per + index % per;
    }
    KvUnit unit(int64_t row, int64_t head, int64_t index) const {
        return {memory + layout.offset(place(row, index), head), &layout};
    }
    int64_t length(int64_t row) const { return starts[row] + offsets[row + 1] - offsets[row]; }

    // Sums of a task's queries: [count][channels] outputs, then a maximum, a sum and an offset of each, the three
    // in whole vectors.
    int64_t part_floats(int64_t count) const { return count * layout.channels() + 3 * round_up(count, 16); }
    // What a thread needs for one task, rounded up generously; see attention_flow.h.
    int64_t scratch_bytes() const { return 2560 * layout.channels() + layout.spare_bytes() + (128 << 10); }
};

}  // namespace qwenkit
