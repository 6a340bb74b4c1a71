// Packed weights as Python holds them: a layout and addresses. The memory belongs to Python.
#pragma once
#include <stdexcept>

#include "elementwise.h"
#include "linear.h"

namespace qwenkit {

struct AffineWeight {
    AffineLayout layout;
    uintptr_t packed, gather, bias;

    AffineWeight(int64_t rows, int64_t columns, int64_t group, int64_t groups, int bits, int zeros, int64_t inner,
                 uintptr_t packed, uintptr_t gather, uintptr_t bias)
        : layout(sized(rows, columns, group, groups, bits, zeros, inner)), packed(packed), gather(gather), bias(bias) {}

    // With a gather a weight may have more groups than its columns fill: uneven groups are padded.
    static AffineLayout sized(int64_t rows, int64_t columns, int64_t group, int64_t groups, int bits, int zeros,
                              int64_t inner) {
        if (zeros < 0 || zeros > 2) throw std::invalid_argument("Unknown kind of zeros.");
        AffineLayout w(rows, columns, group, bits, Zeros(zeros), inner);
        if (groups < w.groups) throw std::invalid_argument("Too few groups for the columns.");
        w.groups = groups;
        w.block_bytes = groups * w.group_bytes;
        w.bytes = w.blocks * w.block_bytes;
        return w;
    }
    void pack(uintptr_t codes, uintptr_t scales, uintptr_t points, uintptr_t minima, uintptr_t group_map,
              uintptr_t inner_scales, uintptr_t inner_minima) const {
        AffinePackJob job{layout,
                          reinterpret_cast<uint8_t*>(codes),
                          reinterpret_cast<uint16_t*>(scales),
                          reinterpret_cast<uint8_t*>(points),
                          reinterpret_cast<uint16_t*>(minima),
                          reinterpret_cast<int32_t*>(gather),
                          reinterpret_cast<int32_t*>(group_map),
                          reinterpret_cast<int8_t*>(inner_scales),
                          reinterpret_cast<uint8_t*>(inner_minima),
                          reinterpret_cast<uint8_t*>(packed)};
        run_pack_affine(job);
    }
    AffineTarget target(void* y) const {
        return {layout, reinterpret_cast<uint8_t*>(packed), reinterpret_cast<float*>(bias), y};
    }
    bool takes_x_like(const AffineWeight& b) const {
        return !gather && !b.gather && layout.columns == b.layout.columns && layout.group == b.layout.group &&
               layout.groups == b.layout.groups && layout.inner == b.layout.inner &&
               (!layout.inner || layout.zeros == b.layout.zeros);
    }
    AffineJob job(const void* x, Dtype x_type, void* y, Dtype y_type, int64_t count) const {
        AffineJob job{};
        job.layout = layout;
        job.packed = reinterpret_cast<uint8_t*>(packed);
        job.gather = reinterpret_cast<int32_t*>(gather);
        job.bias = reinterpret_cast<float*>(bias);
        job.x = x;
        job.x_type = x_type;
        job.y = y;
        job.y_type = y_type;
        job.count = count;
        return job;
    }
    void multiply(const void* x, Dtype x_type, void* y, Dtype y_type, int64_t count, bool exact) const {
        run_affine(job(x, x_type, y, y_type, count), exact);
    }
};

struct Bf16Weight {
    int64_t rows, columns;
    uintptr_t packed, bias;

    void pack(uintptr_t weight) const {
        run_pack_bf16(reinterpret_cast<uint16_t*>(weight), rows, columns, reinterpret_cast<uint16_t*>(packed));
    }
    void multiply(const void* x, Dtype x_type, void* y, Dtype y_type, int64_t count) const {
        Bf16Job job{};
        job.rows = rows;
        job.columns = columns;
        job.packed = reinterpret_cast<uint16_t*>(packed);
        job.bias = reinterpret_cast<float*>(bias);
        job.x = x;
        job.x_type = x_type;
        job.y = y;
        job.y_type = y_type;
        job.count = count;
        run_bf16(job);
    }
};

// y = x w^T + bias, whichever form w has; `exact` as in run_affine.
struct Product {
    const AffineWeight* affine = nullptr;
    const Bf16Weight* bf16 = nullptr;
    bool exact = false;

    int64_t rows() const { return affine ? affine->layout.rows : bf16->rows; }
    int64_t columns() const { return affine ? affine->layout.columns : bf16->columns; }
    void multiply(const void* x, void* y, Dtype type, int64_t count) const {
        if (affine) affine->multiply(x, type, y, type, count, exact);
        else bf16->multiply(x, type, y, type, count);
    }
    // y = (x w^T) * silu(x gate^T); gate_y, like y, has room for one of the products.
    void multiply_gated(const Product& gate, const void* x, void* y, void* gate_y, Dtype type, int64_t count) const {
        if (affine && gate.affine && exact == gate.exact && affine->takes_x_like(*gate.affine))
            return run_gated(affine->job(x, type, y, type, count), exact, gate.affine->target(gate_y));
        multiply(x, y, type, count);
        gate.multiply(x, gate_y, type, count);
        const int64_t n = rows();
        run_rows(GateJob{y, gate_y, y, n, n, n, n, type}, active_kernels().gate, count, n);
    }
};

}  // namespace qwenkit
