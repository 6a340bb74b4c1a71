#include "stack.h"

#include <memory>
#include <string>

#include "elementwise.h"
#include "machine.h"
#include "paged.h"

namespace qwenkit {
namespace {

// Activations of the calling thread, kept between calls.
thread_local std::unique_ptr<Stream> activations;
thread_local int64_t activation_bytes = 0;

char* activations_of(int64_t bytes) {
    if (bytes > activation_bytes) {
        activations.reset();
        activation_bytes = 0;
        activations = std::make_unique<Stream>(bytes);
        activation_bytes = bytes;
    }
    return static_cast<char*>(activations->data);
}

void expect(const Product& p, const char* name, int64_t rows, int64_t columns) {
    if (p.rows() != rows || p.columns() != columns)
        throw std::invalid_argument(std::string(name) + " is " + std::to_string(p.rows()) + " x " +
                                    std::to_string(p.columns()) + ", not " + std::to_string(rows) + " x " +
                                    std::to_string(columns) + ".");
}

}  // namespace

void Stack::add(const StackBlock& b) {
    const PagedLayout& l = b.layout;
    if (l.type != type_) throw std::invalid_argument("The cache keeps another type than the blocks compute in.");
    expect(b.qkv, "qkv", (l.heads + 2 * l.kv_heads) * l.head_dim, hidden_);
    expect(b.attended, "attended", hidden_, l.heads * l.head_dim);
    expect(b.up, "up", inner_, hidden_);
    expect(b.gate, "gate", inner_, hidden_);
    expect(b.down, "down", hidden_, inner_);
    blocks_.push_back(b);
}

void Stack::norm(const void* x, const void* residual, const void* weight, void* sum, void* y, int64_t tokens) const {
    const NormJob job{x, residual, weight, sum, y, hidden_, eps_, type_};
    run_rows(job, active_kernels().norm, tokens, hidden_);
}

void Stack::run(const StackInput& in) const {
    const int64_t n = in.tokens;
    const auto room = [&](int64_t columns) { return round_up(n * columns * size_of(type_), 64); };
    int64_t projected = 0;
    for (const StackBlock& b : blocks_) projected = std::max(projected, b.qkv.rows());
    char* at = activations_of(3 * room(hidden_) + 2 * room(projected) + 2 * room(inner_));
    const auto take = [&](int64_t columns) {
        char* taken = at;
        at += room(columns);
        return taken;
    };
    char *stream = take(hidden_), *normed = take(hidden_), *delta = take(hidden_);
    char *qkv = take(projected), *attended = take(projected), *up = take(inner_), *gate = take(inner_);
    const void* x = in.x;  // what the blocks so far made of it, but for `delta`, which is still to be added
    for (size_t i = 0; i < blocks_.size(); i++) {
        const StackBlock& b = blocks_[i];
        norm(i ? delta : x, i ? x : nullptr, b.ln_1, stream, normed, n);
        if (i) x = stream;
        b.qkv.multiply(normed, qkv, type_, n);
        PagedJob job{};
        job.layout = b.layout;
        job.memory = b.memory;
        job.qkv = qkv;
        job.cos = in.cos;
        job.sin = in.sin;
        job.rotary = in.rotary;
        job.logn = in.logn;
        job.starts = in.starts;
        job.offsets = in.offsets;
        job.tables = in.tables;
        job.rows = in.rows;
        job.width = in.width;
        job.window = b.window;
        job.out = attended;
        run_paged(job, n);
        b.attended.multiply(attended, delta, type_, n);
        norm(delta, x, b.ln_2, stream, normed, n);
        x = stream;
        b.up.multiply_gated(b.gate, normed, up, gate, type_, n);
        b.down.multiply(up, delta, type_, n);
    }
    if (!blocks_.empty()) norm(delta, x, blocks_[0].ln_1, in.y, normed, n);  // for the sum alone
}

}  // namespace qwenkit
