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
#include "elementwise.h"
#include "paged.h"
#include "sampling.h"
#include "stack.h"
#include "thread_pool.h"

namespace nb = nanobind;
using namespace nb::literals;
using namespace qwenkit;

namespace {

using Address = uintptr_t;

template <class T>
T* at(Address a) { return reinterpret_cast<T*>(a); }

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

}  // namespace

NB_MODULE(_cpu, m) {
    nb::set_leak_warnings(false);  // a model that lives until the process ends is no leak
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
    m.def("affine_packed_bytes", [](int64_t rows, int64_t columns, int64_t group, int64_t groups, int bits, int zeros,
                                    int64_t inner) {
        return AffineWeight::sized(rows, columns, group, groups, bits, zeros, inner).bytes;
    });

    nb::class_<AffineWeight>(m, "AffineWeight")
        .def(nb::init<int64_t, int64_t, int64_t, int64_t, int, int, int64_t, Address, Address, Address>())
        .def("pack", &AffineWeight::pack, Free())
        .def("multiply", [](const AffineWeight& w, Address x, int x_type, Address y, int y_type, int64_t count, bool exact) {
            w.multiply(at<void>(x), Dtype(x_type), at<void>(y), Dtype(y_type), count, exact);
        }, Free());
    nb::class_<Bf16Weight>(m, "Bf16Weight")
        .def("__init__", [](Bf16Weight* w, int64_t rows, int64_t columns, Address packed, Address bias) {
            new (w) Bf16Weight{rows, columns, packed, bias};
        })
        .def("pack", &Bf16Weight::pack, Free())
        .def("multiply", [](const Bf16Weight& w, Address x, int x_type, Address y, int y_type, int64_t count) {
            w.multiply(at<void>(x), Dtype(x_type), at<void>(y), Dtype(y_type), count);
        }, Free());
    nb::class_<Product>(m, "Product")
        .def("__init__", [](Product* p, const AffineWeight* w, bool exact) { new (p) Product{w, nullptr, exact}; },
             "weight"_a, "exact"_a, nb::keep_alive<1, 2>())
        .def("__init__", [](Product* p, const Bf16Weight* w, bool) { new (p) Product{nullptr, w, false}; },
             "weight"_a, "exact"_a, nb::keep_alive<1, 2>());

    nb::class_<PagedLayer>(m, "PagedLayer")
        .def("__init__", [](PagedLayer* l, const PagedLayout& layout, Address memory) {
            new (l) PagedLayer{layout, memory};
        })
        .def("attend", &PagedLayer::attend, Free())
        .def("copy", &PagedLayer::copy, Free());
    nb::class_<PagedLayout>(m, "PagedLayout")
        .def("__init__", [](PagedLayout* l, int64_t blocks, int64_t block_size, int64_t heads, int64_t kv_heads,
                            int64_t head_dim, int type, int format, Address key_form, Address angles,
                            bool keeps_angles) {
            new (l) PagedLayout{blocks, block_size, heads, kv_heads, head_dim, Dtype(type), KvFormat(format),
                                at<float>(key_form), at<int16_t>(angles), keeps_angles};
        })
        .def_prop_ro("bytes", &PagedLayout::bytes);

    nb::class_<Stack>(m, "Stack")
        .def("__init__", [](Stack* s, int64_t hidden, int64_t inner, float eps, int type) {
            new (s) Stack(hidden, inner, eps, Dtype(type));
        })
        .def("add", [](Stack& s, Address ln_1, Address ln_2, const Product& qkv, const Product& attended, const Product& up,
                       const Product& gate, const Product& down, const PagedLayer& layer, int64_t window) {
            s.add({at<void>(ln_1), at<void>(ln_2), qkv, attended, up, gate, down, layer.layout, at<char>(layer.memory),
                   window});
        })
        .def("run", [](const Stack& s, Address x, Address y, int64_t tokens, Address cos, Address sin, int64_t rotary,
                       Address logn, Address starts, Address offsets, Address tables, int64_t rows, int64_t width) {
            s.run({at<void>(x), at<void>(y), tokens, rotary, at<float>(cos), at<float>(sin), at<float>(logn),
                   at<int32_t>(starts), at<int32_t>(offsets), at<int32_t>(tables), rows, width});
        }, Free());

    m.def("norm", [](Address x, Address residual, Address weight, Address sum, Address y, int64_t rows, int64_t columns,
                     float eps, int type) {
        const NormJob job{at<void>(x), at<void>(residual), at<void>(weight), at<void>(sum), at<void>(y), columns, eps,
                          Dtype(type)};
        run_rows(job, active_kernels().norm, rows, columns);
    }, Free());
    m.def("rope", [](Address x, Address y, Address cos, Address sin, int64_t tokens, int64_t x_token, int64_t y_token,
                     int64_t heads, int64_t head_dim, int64_t rotary, int64_t tokens_per_table, int type) {
        const RopeJob job{at<void>(x), at<void>(y), at<float>(cos), at<float>(sin), x_token, y_token, heads, head_dim,
                          rotary, tokens_per_table, Dtype(type)};
        run_rows(job, active_kernels().rope, tokens, heads * head_dim);
    }, Free());
    m.def("gate", [](Address up, Address gate, Address y, int64_t rows, int64_t columns, int64_t up_row,
                     int64_t gate_row, int64_t y_row, int type) {
        const GateJob job{at<void>(up), at<void>(gate), at<void>(y), columns, up_row, gate_row, y_row, Dtype(type)};
        run_rows(job, active_kernels().gate, rows, columns);
    }, Free());
    m.def("grid", [](Address lines, Address share, Address scales, Address zeros, int64_t count, int64_t outputs,
                     int clips, int top, bool symmetric) {
        const GridJob job{at<float>(lines), at<float>(share), at<float>(scales), at<float>(zeros), count, outputs, clips,
                          top, symmetric};
        const int64_t strips = (outputs + rounding_strip - 1) / rounding_strip;
        run_rows(job, active_kernels().grid, strips, rounding_strip * count * clips);
    }, Free());
    m.def("round", [](Address lines, Address carry, Address scales, Address zeros, Address codes, Address errors,
                      int64_t first, int64_t last, int64_t count, int64_t outputs, int top) {
        const RoundingJob job{at<float>(lines), at<float>(carry), at<float>(scales), at<float>(zeros),
                              at<uint8_t>(codes), at<float>(errors), first, last, count, outputs, float(top)};
        const int64_t strips = (outputs + rounding_strip - 1) / rounding_strip;
        run_rows(job, active_kernels().round, strips, rounding_strip * (last - first) * count / 2);
    }, Free());
    m.attr("draw_row_bytes") = sizeof(DrawRow);
    m.attr("likely_row_bytes") = sizeof(LikelyRow);
    m.def("draw", [](Address logits, int64_t row_step, int64_t size, Address holes, int64_t hole_count, int type,
                     Address edit_ids, Address edit_values, Address draws, int64_t count) {
        const LogitRows from{at<void>(logits), row_step, size, at<int32_t>(holes), hole_count, Dtype(type)};
        run_draws(DrawJob{from, at<int32_t>(edit_ids), at<float>(edit_values), at<DrawRow>(draws)}, count);
    }, Free());
    m.def("likely", [](Address logits, int64_t row_step, int64_t size, Address holes, int64_t hole_count, int type,
                       Address rows, Address ids, Address values, int64_t count) {
        const LogitRows from{at<void>(logits), row_step, size, at<int32_t>(holes), hole_count, Dtype(type)};
        run_likely(LikelyJob{from, at<LikelyRow>(rows), at<int32_t>(ids), at<double>(values)}, count);
    }, Free());
}
