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

// Runs of one product; the pointers of the job's weight, bias, x and y are filled in by the caller. With `other`
// x is prepared once for two.
void run_affine(AffineJob job, bool exact, const AffineTarget* other = nullptr);
void run_bf16(Bf16Job job);
void run_pack_affine(const AffinePackJob& job);
void run_pack_bf16(const uint16_t* weight, int64_t rows, int64_t columns, uint16_t* packed);

// Which kernel a product of `count` rows uses, in words.
const char* affine_path(int64_t count, bool exact, Dtype x);
const char* bf16_path(int64_t count);

}  // namespace qwenkit
