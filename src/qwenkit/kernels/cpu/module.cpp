// The Python face. Tensors come as addresses: the typed wrapper in native.py checks shapes, types and
// lifetimes; nothing here is meant to be called directly. No torch linkage; the GIL is released.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "cpu_features.h"
#include "kernels.h"
#include "linear.h"
#include "machine.h"
#include "paged.h"
#include "thread_pool.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace qwenkit;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address a) { return reinterpret_cast<T*>(a); }

// A packed affine weight and its companions; the memory belongs to Python.
struct AffineWeight {
    AffineLayout layout;
    Address packed, gather, bias;

    AffineWeight(int64_t rows, int64_t columns, int64_t group, int64_t groups, int bits, int zeros, Address packed,
                 Address gather, Address bias)
        : layout(sized(rows, columns, group, groups, bits, zeros)), packed(packed), gather(gather), bias(bias) {}

    // With a gather a weight may have more groups than its columns fill: uneven groups are padded.
    static AffineLayout sized(int64_t rows, int64_t columns, int64_t group, int64_t groups, int bits, int zeros) {
        if (zeros < 0 || zeros > 2) throw std::invalid_argument("Unknown kind of zeros.");
        AffineLayout w(rows, columns, group, bits, Zeros(zeros));
        if (groups < w.groups) throw std::invalid_argument("Too few groups for the columns.");
        w.groups = groups;
        w.block_bytes = groups * w.group_bytes;
        w.bytes = w.blocks * w.block_bytes;
        return w;
    }
    void pack(Address codes, Address scales, Address points, Address minima, Address group_map) const {
        AffinePackJob job{layout, at<uint8_t>(codes), at<uint16_t>(scales), at<uint8_t>(points), at<uint16_t>(minima),
                          at<int32_t>(gather), at<int32_t>(group_map), at<uint8_t>(packed)};
        run_pack_affine(job);
    }
    void multiply(Address x, int x_type, Address y, int y_type, int64_t count, bool exact) const {
        AffineJob job{};
        job.layout = layout;
        job.packed = at<uint8_t>(packed);
        job.gather = at<int32_t>(gather);
        job.bias = at<float>(bias);
        job.x = at<void>(x);
        job.x_type = Dtype(x_type);
        job.y = at<void>(y);
        job.y_type = Dtype(y_type);
        job.count = count;
        run_affine(job, exact);
    }
};

struct Bf16Weight {
    int64_t rows, columns;
    Address packed, bias;

    void pack(Address weight) const { run_pack_bf16(at<uint16_t>(weight), rows, columns, at<uint16_t>(packed)); }
    void multiply(Address x, int x_type, Address y, int y_type, int64_t count) const {
        Bf16Job job{};
        job.rows = rows;
        job.columns = columns;
        job.packed = at<uint16_t>(packed);
        job.bias = at<float>(bias);
        job.x = at<void>(x);
        job.x_type = Dtype(x_type);
        job.y = at<void>(y);
        job.y_type = Dtype(y_type);
        job.count = count;
        run_bf16(job);
    }
};

// The keys and values of one layer; the memory belongs to Python.
struct PagedLayer {
    PagedLayout layout;
    Address memory;

    void attend(Address qkv, int64_t tokens, Address cos, Address sin, int64_t rotary, Address logn, Address starts,
                Address offsets, Address tables, int64_t rows, int64_t width, int64_t window, Address out) const {
        PagedJob job{};
        job.layout = layout;
        job.memory = at<char>(memory);
        job.qkv = at<void>(qkv);
        job.cos = at<float>(cos);
        job.sin = at<float>(sin);
        job.rotary = rotary;
        job.logn = at<float>(logn);
        job.starts = at<int32_t>(starts);
        job.offsets = at<int32_t>(offsets);
        job.tables = at<int32_t>(tables);
        job.rows = rows;
        job.width = width;
        job.window = window;
        job.out = at<void>(out);
        run_paged(job, tokens);
    }
    void copy(const std::vector<int64_t>& sources, const std::vector<int64_t>& targets) const {
        copy_blocks(layout, at<char>(memory), sources, targets);
    }
};

// Elementwise work below this many elements is done on the spot.
constexpr int64_t share_from = 64 * 1024;

template <class Job>
void share(const Job& job, void (*run)(const Job&, int64_t, int64_t), int64_t rows, int64_t columns) {
    if (rows * columns < share_from) run(job, 0, rows);
    else ThreadPool::shared().loop(rows, std::max<int64_t>(1, 16 * 1024 / columns),
                                   [&](int64_t a, int64_t b) { run(job, a, b); });
}

}  // namespace

NB_MODULE(_cpu, m) {
    using Free = nb::call_guard<nb::gil_scoped_release>;

    m.def("isa", [] { return std::string(isa_name(active_isa())); });
    m.def("set_isa", [](const std::string& name) { set_isa(name.empty() ? best_isa() : isa_from_name(name)); });
    m.def("missing_for", [](const std::string& name) { return missing_for(isa_from_name(name)); });
    m.def("threads", &ThreadPool::threads);
    m.def("set_threads", &ThreadPool::set_threads, Free());
    m.def("set_affinity", &ThreadPool::set_affinity, Free());
    m.def("read_bandwidth", &read_bandwidth, Free());
    m.def("peak", &peak, Free());
    m.def("allocate", [](int64_t bytes) {
        auto* stream = new Stream(bytes);
        nb::capsule owner(stream, [](void* p) noexcept { delete static_cast<Stream*>(p); });
        return nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>>(stream->data, {size_t(bytes)}, owner);
    });
    m.def("affine_path", [](int64_t count, bool exact, int x) { return std::string(affine_path(count, exact, Dtype(x))); });
    m.def("bf16_path", [](int64_t count) { return std::string(bf16_path(count)); });
    m.def("bf16_packed_bytes", &bf16_packed_bytes);
    m.def("affine_packed_bytes", [](int64_t rows, int64_t columns, int64_t group, int64_t groups, int bits, int zeros) {
        return AffineWeight::sized(rows, columns, group, groups, bits, zeros).bytes;
    });

    nb::class_<AffineWeight>(m, "AffineWeight")
        .def(nb::init<int64_t, int64_t, int64_t, int64_t, int, int, Address, Address, Address>())
        .def("pack", &AffineWeight::pack, Free())
        .def("multiply", &AffineWeight::multiply, Free());
    nb::class_<Bf16Weight>(m, "Bf16Weight")
        .def("__init__", [](Bf16Weight* w, int64_t rows, int64_t columns, Address packed, Address bias) {
            new (w) Bf16Weight{rows, columns, packed, bias};
        })
        .def("pack", &Bf16Weight::pack, Free())
        .def("multiply", &Bf16Weight::multiply, Free());

    nb::class_<PagedLayer>(m, "PagedLayer")
        .def("__init__", [](PagedLayer* l, const PagedLayout& layout, Address memory) {
            new (l) PagedLayer{layout, memory};
        })
        .def("attend", &PagedLayer::attend, Free())
        .def("copy", &PagedLayer::copy, Free());
    nb::class_<PagedLayout>(m, "PagedLayout")
        .def("__init__", [](PagedLayout* l, int64_t blocks, int64_t block_size, int64_t heads, int64_t kv_heads,
                            int64_t head_dim, int type, int format) {
            new (l) PagedLayout{blocks, block_size, heads, kv_heads, head_dim, Dtype(type), KvFormat(format)};
        })
        .def_prop_ro("bytes", &PagedLayout::bytes);

    m.def("norm", [](Address x, Address residual, Address weight, Address sum, Address y, int64_t rows, int64_t columns,
                     float eps, int type) {
        const NormJob job{at<void>(x), at<void>(residual), at<void>(weight), at<void>(sum), at<void>(y), columns, eps,
                          Dtype(type)};
        share(job, active_kernels().norm, rows, columns);
    }, Free());
    m.def("rope", [](Address x, Address y, Address cos, Address sin, int64_t tokens, int64_t x_token, int64_t y_token,
                     int64_t heads, int64_t head_dim, int64_t rotary, int64_t tokens_per_table, int type) {
        const RopeJob job{at<void>(x), at<void>(y), at<float>(cos), at<float>(sin), x_token, y_token, heads, head_dim,
                          rotary, tokens_per_table, Dtype(type)};
        share(job, active_kernels().rope, tokens, heads * head_dim);
    }, Free());
    m.def("gate", [](Address up, Address gate, Address y, int64_t rows, int64_t columns, int64_t up_row,
                     int64_t gate_row, int64_t y_row, int type) {
        const GateJob job{at<void>(up), at<void>(gate), at<void>(y), columns, up_row, gate_row, y_row, Dtype(type)};
        share(job, active_kernels().gate, rows, columns);
    }, Free());
}
