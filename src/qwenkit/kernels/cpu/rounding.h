// Rounding the lines of a weight one after the other, carrying the error of each on to those after it; and the
// scales to round to.
#pragma once
#include <cstdint>

namespace qwenkit {

constexpr int64_t rounding_lines = 128;   // most lines of a job
constexpr int64_t rounding_strip = 64;  // outputs that are worked on together

// Lines [count, outputs] are inputs of the weight. Those from `first` to `last` are rounded to
// scale (code - zero), codes from 0 to `top`; line j after line i loses carry[i, j] times the error of i.
struct RoundingJob {
    float* lines;        // [count, outputs]
    const float* carry;  // [count, count], upper triangular
    const float *scales, *zeros;  // [outputs]
    uint8_t* codes;      // [count, outputs]
    float* errors;       // [count, outputs], divided by the diagonal of carry
    int64_t first, last, count, outputs;
    float top;
};

// The scale and zero of each output for lines [count, outputs] of a group: those of least cost, sum of share [i]
// times the squared error of line i, among its range clipped in `clips` steps of a twentieth. Scales are float16.
struct GridJob {
    const float *lines, *share;
    float *scales, *zeros;  // [outputs]
    int64_t count, outputs;
    int clips, top;
    bool symmetric;
};

}  // namespace qwenkit
