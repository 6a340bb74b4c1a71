// The operators every vector instruction set offers; each fills one table. Bodies take a range to work on.
#pragma once
#include <cstdint>

#include "affine.h"
#include "attention.h"
#include "bf16_linear.h"
#include "rounding.h"
#include "sampling.h"

namespace qwenkit {

struct NormJob {  // rms norm of rows, after adding `residual` where given
    const void *x, *residual, *weight;
    void *sum;   // x + residual in the type of x, where residual is given
    void *y;
    int64_t columns;
    float eps;
    Dtype type;
};

struct RopeJob {  // x [tokens, heads, head_dim] in place (y == x) or not; cos, sin [tokens or 1 table row, rotary]
    const void* x;
    void* y;
    const float *cos, *sin;
    int64_t x_token, y_token;  // elements from one token to the next
    int64_t heads, head_dim, rotary, tokens_per_table;
    Dtype type;
};

struct GateJob {  // y = up * silu(gate), rows of `columns`, row strides in elements
    const void *up, *gate;
    void* y;
    int64_t columns, up_row, gate_row, y_row;
    Dtype type;
};

struct Kernels {
    void (*quantize)(const AffineJob&, int64_t first_row, int64_t last_row);
    void (*widen)(const AffineJob&, int64_t first_row, int64_t last_row);
    void (*tile)(const AffineJob&, int64_t first_row, int64_t last_row);
    void (*affine_int8)(const AffineJob&, int64_t first_block, int64_t last_block);
    void (*affine_exact)(const AffineJob&, int64_t first_block, int64_t last_block);
    void (*nested_int8)(const AffineJob&, int64_t first_block, int64_t last_block);
    void (*bf16_pack_x)(const Bf16Job&, int64_t first_row, int64_t last_row);
    void (*bf16_rows)(const Bf16Job&, int64_t first_block, int64_t last_block);
    void (*norm)(const NormJob&, int64_t first_row, int64_t last_row);
    void (*rope)(const RopeJob&, int64_t first_token, int64_t last_token);
    void (*gate)(const GateJob&, int64_t first_row, int64_t last_row);
    void (*keep)(const PagedJob&, const KeepTask&);
    void (*attend)(const PagedJob&, const AttendTask&, char* scratch);
    void (*merge)(const PagedJob&, const AttendTask&, char* scratch);  // the parts of its segments, in order
    void (*draw)(const DrawJob&, void* scratch, int64_t first, int64_t last);
    void (*likely)(const LikelyJob&, void* scratch, int64_t first, int64_t last);
    void (*round)(const RoundingJob&, int64_t first_strip, int64_t last_strip);
    void (*grid)(const GridJob&, int64_t first_strip, int64_t last_strip);
};

#define QWENKIT_DECLARE_KERNELS(SET)                          \
    namespace SET {                                           \
    extern const Kernels kernels;                             \
    void quantize(const AffineJob&, int64_t, int64_t);        \
    void widen(const AffineJob&, int64_t, int64_t);           \
    void tile(const AffineJob&, int64_t, int64_t);            \
    void affine_int8(const AffineJob&, int64_t, int64_t);     \
    void affine_exact(const AffineJob&, int64_t, int64_t);    \
    void nested_int8(const AffineJob&, int64_t, int64_t);     \
    void bf16_pack_x(const Bf16Job&, int64_t, int64_t);       \
    void bf16_rows(const Bf16Job&, int64_t, int64_t);         \
    void norm(const NormJob&, int64_t, int64_t);              \
    void rope(const RopeJob&, int64_t, int64_t);              \
    void gate(const GateJob&, int64_t, int64_t);              \
    void keep(const PagedJob&, const KeepTask&);              \
    void attend(const PagedJob&, const AttendTask&, char*);   \
    void merge(const PagedJob&, const AttendTask&, char*);    \
    void draw(const DrawJob&, void*, int64_t, int64_t);       \
    void likely(const LikelyJob&, void*, int64_t, int64_t);   \
    void round(const RoundingJob&, int64_t, int64_t);         \
    void grid(const GridJob&, int64_t, int64_t);              \
    }
QWENKIT_DECLARE_KERNELS(avx2)
QWENKIT_DECLARE_KERNELS(avx512)
#undef QWENKIT_DECLARE_KERNELS

const Kernels& active_kernels();  // of active_isa(); throws std::runtime_error for the reference path

namespace amx {  // tile kernels; ranges are of panels of 32 output rows, at most `most_count` rows of x
constexpr int64_t most_count = 512;
void affine_int8(const AffineJob&, int64_t first_panel, int64_t last_panel);
void affine_exact(const AffineJob&, int64_t first_panel, int64_t last_panel);
void nested_int8(const AffineJob&, int64_t first_panel, int64_t last_panel);
void bf16_linear(const Bf16Job&, int64_t first_panel, int64_t last_panel);
void attend(const PagedJob&, const AttendTask&, char* scratch);        // of bf16
void attend_codes(const PagedJob&, const AttendTask&, char* scratch);  // the same over a cache of codes
}  // namespace amx

}  // namespace qwenkit
