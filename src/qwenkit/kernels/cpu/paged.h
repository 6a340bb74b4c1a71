// One step of paged attention over all threads, and copies of blocks. Checks what it is given.
#pragma once
#include <vector>

#include "attention.h"

namespace qwenkit {

// The whole step, on all threads. Throws std::invalid_argument if a row or its blocks are out of range.
void run_paged(PagedJob job, int64_t tokens);
void copy_blocks(const PagedLayout& layout, char* memory, const std::vector<int64_t>& sources,
                 const std::vector<int64_t>& targets);

}  // namespace qwenkit
