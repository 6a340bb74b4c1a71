// Affine weights of 4 or 8 bits: their packed layout and the operators' jobs. No instruction set here.
//
// Packed layout (one for every path). Output rows go in blocks of 16, columns in groups of 32, 64 or 128.
// A block holds its groups one after another; a group holds
//   codes   64-byte lines. 8 bits: byte 4 r + i of line j is row r, column 4 j + i: one row of an AMX tile.
//           4 bits: the low nibbles of line j are line 2 j of the 8-bit form, the high nibbles line 2 j + 1.
//   scales  16 fp16
//   zeros   nothing (the zero is 8 or 128), 16 uint8 zero points, or 16 fp16 minima
// so that w = scale * (code - zero), or w = scale * code + minimum. The zero points of 4-bit codes count eighths of
// a step, 0 to 128: 8 code - point still fits a signed byte, so kernels multiply that and an eighth of the scale. Missing rows and columns have scale 0
// or meet activations that are 0.
#pragma once
#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace qwenkit {

constexpr float eighth = 0.125f;

constexpr int64_t slab_groups = 2;  // groups of columns whose x shares a scale; they add up before it is applied

enum class Zeros : int { none = 0, points = 1, minima = 2 };

struct AffineLayout {
    int64_t rows, columns, group;  // as given
    int bits;
    Zeros zeros;
    int64_t groups, blocks;        // groups a row, blocks of 16 rows
    int64_t code_bytes, group_bytes, block_bytes, bytes;

    AffineLayout() = default;
    AffineLayout(int64_t rows, int64_t columns, int64_t group, int bits, Zeros zeros);  // throws invalid_argument
    int64_t padded_columns() const { return groups * group; }
    bool eighths() const { return bits == 4 && zeros == Zeros::points; }
    int64_t slabs() const { return (groups + slab_groups - 1) / slab_groups; }
};

// One product y = x w^T + bias over `count` rows of x, with its scratch memory.
struct AffineJob {
    AffineLayout layout;
    const uint8_t* packed;
    const int32_t* gather;  // [padded_columns] the column of x each packed column takes, -1: none; or null
    const float* bias;      // [rows] or null
    const void* x;          // [count, columns]
    Dtype x_type;
    void* y;                // [count, rows]
    Dtype y_type;
    int64_t count;
    bool past_cache;        // y is large: written straight to memory
    int64_t y_row, y_first; // tile kernels: elements from one row of y to the next; the output y begins with

    // Activations as the kernel wants them. `interleave` rows share a panel: 1 for the row kernels,
    // 32 for the tile kernels, whose panel holds tiles of 16 rows by 64 bytes.
    int64_t interleave;
    int8_t* codes;          // int8 mode
    float* scales;          // of slab s: index (m / interleave * slabs + s) * interleave + m % interleave
    int32_t* sums;          // sum of the codes of group g: index (m / interleave * groups + g) * interleave + ...
    float* offsets;         // the same as float, or the sum of the group's values (16-bit mode), same index
    float* floats;          // 16-bit mode, row kernels: [count, padded_columns]
    uint16_t* halves;       // 16-bit mode, tile kernels: bf16 tiles of 16 rows by 32 columns
    int64_t chunk_bytes() const { return layout.group < 64 ? layout.group : 64; }  // of one tile row
};

struct AffinePackJob {
    AffineLayout layout;
    const uint8_t* codes;      // [rows, columns], one code a byte
    const uint16_t* scales;    // fp16 [source_groups, rows]
    const uint8_t* points;     // [source_groups, rows] or null
    const uint16_t* minima;    // fp16 [source_groups, rows] or null
    const int32_t* gather;     // [padded_columns] source column or -1, or null: the identity
    const int32_t* group_map;  // [groups] source group of each packed group
    uint8_t* packed;
};
void pack_affine(const AffinePackJob& job, int64_t first_block, int64_t last_block);

}  // namespace qwenkit
