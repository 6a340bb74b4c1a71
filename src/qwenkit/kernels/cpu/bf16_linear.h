// The unquantized linear operator: bf16 weights, packed once. Job and layout, no instruction set.
//
// Packed layout: blocks of 16 output rows; line j of 64 bytes holds columns 2 j and 2 j + 1 of each row, so
// 16 lines are one AMX tile of 16 rows by 32 columns. Columns are padded with zeros to a multiple of 32.
#pragma once
#include <cstdint>

#include "dtype.h"

namespace qwenkit {

struct Bf16Job {
    int64_t rows, columns;
    const uint16_t* packed;
    const float* bias;   // [rows] or null
    const void* x;       // [count, columns]
    Dtype x_type;
    void* y;             // [count, rows]
    Dtype y_type;
    int64_t count;
    bool past_cache;     // y is large: written straight to memory
    int64_t interleave;  // 1: rows of padded_columns; 32: panels of tiles, 16 rows by 32 columns
    uint16_t* halves;    // x rounded to bf16, padded, in that order
    int64_t padded_columns() const { return round_up(columns, 32); }
    int64_t block_halves() const { return padded_columns() * 16; }
};

inline int64_t bf16_packed_bytes(int64_t rows, int64_t columns) {
    return round_up(rows, 16) * round_up(columns, 32) * 2;
}
void pack_bf16(const uint16_t* weight, int64_t rows, int64_t columns, uint16_t* packed, int64_t first_block,
               int64_t last_block);

}  // namespace qwenkit
