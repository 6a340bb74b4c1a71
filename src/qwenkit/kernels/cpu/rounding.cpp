// A strip of outputs is copied beside itself, all its lines in the first-level cache, and worked through.
#include "rounding.h"

#include "kernels.h"
#include "lanes.h"

namespace qwenkit::QWENKIT_LANES {
namespace {

constexpr int64_t width = rounding_strip, parts = width / lanes;

void strip(const RoundingJob& job, int64_t start) {
    alignas(64) float held[rounding_lines * width];
    alignas(64) float scales[width], zeros[width];
    alignas(64) int32_t codes[width];
    const int64_t n = job.outputs, used = n - start < width ? n - start : width;
    for (int64_t i = 0; i < width; i++) {
        scales[i] = i < used ? job.scales[start + i] : 1;
        zeros[i] = i < used ? job.zeros[start + i] : 0;
    }
    for (int64_t line = job.first; line < job.count; line++) {
        float* to = held + line * width;
        __builtin_memcpy(to, job.lines + line * n + start, used * sizeof(float));
        for (int64_t i = used; i < width; i++) to[i] = 0;
    }
    for (int64_t line = job.first; line < job.last; line++) {
        const float* carry = job.carry + line * job.count;
        float* here = held + line * width;
        V errors[parts];
        for (int64_t p = 0; p < parts; p++) {
            const V w = load(here + p * lanes), scale = load(scales + p * lanes), zero = load(zeros + p * lanes);
            const V code = clamp(add(nearest(div(w, scale)), zero), 0, job.top);
            istore(codes + p * lanes, to_int(code));
            errors[p] = div(sub(w, mul(sub(code, zero), scale)), set(carry[line]));
            store(here + p * lanes, errors[p]);
        }
        for (int64_t i = 0; i < used; i++) job.codes[line * n + start + i] = uint8_t(codes[i]);
        for (int64_t after = line + 1; after < job.count; after++) {
            const V share = set(-carry[after]);
            float* to = held + after * width;
            for (int64_t p = 0; p < parts; p++) store(to + p * lanes, fma(share, errors[p], load(to + p * lanes)));
        }
    }
    for (int64_t line = job.first; line < job.count; line++) {
        float* to = (line < job.last ? job.errors : job.lines) + line * n + start;
        __builtin_memcpy(to, held + line * width, used * sizeof(float));
    }
}

}  // namespace

void round(const RoundingJob& job, int64_t first, int64_t last) {
    for (int64_t i = first; i < last; i++) strip(job, i * width);
}

}  // namespace qwenkit::QWENKIT_LANES
