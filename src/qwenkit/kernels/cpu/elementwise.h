// Work on rows, over all threads where there is enough of it.
#pragma once
#include <algorithm>

#include "kernels.h"
#include "thread_pool.h"

namespace qwenkit {

constexpr int64_t share_elements = 64 * 1024;  // below this many the caller does it on the spot

template <class Job>
void run_rows(const Job& job, void (*run)(const Job&, int64_t, int64_t), int64_t rows, int64_t columns) {
    if (rows * columns < share_elements) run(job, 0, rows);
    else ThreadPool::shared().loop(rows, std::max<int64_t>(1, 16 * 1024 / columns),
                                   [&](int64_t a, int64_t b) { run(job, a, b); });
}

}  // namespace qwenkit
