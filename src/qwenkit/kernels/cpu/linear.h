// Linear operators over packed weights: choose the kernel, prepare the activations, share out the work.
#pragma once
#include <cstdint>

#include "affine.h"
#include "bf16_linear.h"

namespace qwenkit {

struct AffineTarget {  // another weight for the same x: it cuts and orders its columns as the first does
    AffineLayout layout;
    const uint8_t* packed;
    const float* bias;
    void* y;
};

// Runs of one product; the pointers of the job's weight, bias, x and y are filled in by the caller.
void run_affine(AffineJob job, bool exact);
// y = (x w^T + bias) * silu(x gate^T + bias): x is prepared once, and with many rows the two products meet in the
// caches; with few, the gate's goes through gate.y [count, rows].
void run_gated(AffineJob job, bool exact, const AffineTarget& gate);
void run_bf16(Bf16Job job);
void run_pack_affine(const AffinePackJob& job);
void run_pack_bf16(const uint16_t* weight, int64_t rows, int64_t columns, uint16_t* packed);

// Which kernel a product of `count` rows uses, in words.
const char* affine_path(int64_t count, bool exact, Dtype x);
const char* bf16_path(int64_t count);

}  // namespace qwenkit
