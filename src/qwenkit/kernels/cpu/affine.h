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
//
// Nested form (the K-quants of GGUF): groups of 256 columns, of which every 16 or 32 share an integer scale and,
// with minima, an integer factor of the minimum:
//   w = scale * s * (code - zero), or w = scale * s * code + minimum * m, with |s| <= 128 and 0 <= m < 64
// A group holds first the s, 16 signed bytes for each of its `inner` columns; with minima as many bytes of m; 16 fp16
// scales; with minima 16 fp16 minima; then the codes: of 4 bits as above, of 6 bits three lines for four of the 8-bit
// form, whose low halves fill two lines as nibbles and whose upper two bits fill the third, line i from bit 2 i on.
#pragma once
#include <cstddef>
#include <cstdint>

#include "dtype.h"

namespace qwenkit {

constexpr float eighth = 0.125f;

constexpr int64_t slab_groups = 2;  // groups of columns whose x shares a scale; they add up before it is applied
constexpr int64_t nested_group = 256;

enum class Zeros : int { none = 0, points = 1, minima = 2 };

struct AffineLayout {
    int64_t rows, columns, group;  // as given
    int bits;
    Zeros zeros;
    int64_t inner;                 // columns that share an integer scale: 16 or 32; 0: not nested
    int64_t groups, blocks;        // groups a row, blocks of 16 rows
    int64_t code_bytes, group_bytes, block_bytes, bytes;

    AffineLayout() = default;
    // Throws invalid_argument.
    AffineLayout(int64_t rows, int64_t columns, int64_t group, int bits, Zeros zeros, int64_t inner = 0);
    int64_t padded_columns() const { return groups * group; }
    bool eighths() const { return bits == 4 && zeros == Zeros::points; }
    int64_t slabs() const { return inner ? groups : (groups + slab_groups - 1) / slab_groups; }
    int64_t inners() const { return inner ? group / inner : 1; }  // of a group
    int64_t sums() const { return groups * inners(); }            // of x a kernel wants
    int64_t head_bytes() const { return group_bytes - code_bytes; }
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
    int32_t* sums;          // of the codes that share a scale: index (m / interleave * sums() + g) * interleave + ...
    float* offsets;         // the same as float, or the sum of the group's values (16-bit mode), same index
    float* floats;          // 16-bit mode, row kernels: [count, padded_columns]
    uint16_t* halves;       // 16-bit mode, tile kernels: bf16 tiles of 16 rows by 32 columns
                            // nested minima, tile kernels: sums as bf16 pairs (multiple of 16, rest), a tile a group
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
    const int8_t* inner_scales;   // nested form: [source_groups * inners, rows], with minima as many factors of them
    const uint8_t* inner_minima;
    uint8_t* packed;
};
void pack_affine(const AffinePackJob& job, int64_t first_block, int64_t last_block);

}  // namespace qwenkit
