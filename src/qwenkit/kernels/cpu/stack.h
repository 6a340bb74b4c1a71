// The blocks of a decoder in one call: what model/model.py does block by block, for packed weights and a paged
// cache, with the same kernels in the same order and so with the same bits.
#pragma once
#include <vector>

#include "attention.h"
#include "weights.h"

namespace qwenkit {

struct StackBlock {
    const void *ln_1, *ln_2;  // weights of the norms
    Product qkv, attended, up, gate, down;
    PagedLayout layout;
    char* memory;    // of the layer's keys and values
    int64_t window;  // 0: none
};

// Tokens of a step and where they stand; see PagedJob.
struct StackInput {
    const void* x;
    void* y;
    int64_t tokens, rotary;
    const float *cos, *sin, *logn;
    const int32_t *starts, *offsets, *tables;
    int64_t rows, width;
};

class Stack {
  public:
    Stack(int64_t hidden, int64_t inner, float eps, Dtype type) : hidden_(hidden), inner_(inner), eps_(eps), type_(type) {}
    void add(const StackBlock& block);  // throws std::invalid_argument where its shapes do not fit
    void run(const StackInput& in) const;

  private:
    void norm(const void* x, const void* residual, const void* weight, void* sum, void* y, int64_t tokens) const;

    int64_t hidden_, inner_;
    float eps_;
    Dtype type_;
    std::vector<StackBlock> blocks_;
};

}  // namespace qwenkit
