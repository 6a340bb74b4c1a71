// A persistent pool: the caller plus N-1 workers share one loop at a time. Knows no kernel.
#pragma once
#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace qwenkit {

class ThreadPool {
  public:
    // The process's pool. After fork() the child gets a fresh one: threads do not survive a fork.
    static ThreadPool& shared();
    static int default_threads();        // QWENKIT_THREADS, else the CPUs this process may run on
    static void set_threads(int count);  // waits for a running loop; throws std::invalid_argument
    static int threads();
    static void set_affinity(const std::vector<int>& cpus);  // one CPU a worker, empty: no binding

    ~ThreadPool();

    // Calls body(begin, end) over [0, count) in steps of `grain`, each index exactly once. Every thread
    // starts in its own contiguous part, which keeps its memory stream sequential, and then helps the
    // others. Concurrent callers wait for each other; a call from inside a body runs on the spot.
    template <class Body>
    void loop(int64_t count, int64_t grain, Body&& body) {
        using Plain = std::remove_reference_t<Body>;
        run(count, grain, [](void* b, int64_t begin, int64_t end) { (*static_cast<Plain*>(b))(begin, end); },
            const_cast<void*>(static_cast<const void*>(&body)));
    }

  private:
    using Function = void (*)(void*, int64_t, int64_t);
    struct alignas(64) Part {
        std::atomic<int64_t> next{0};
        int64_t end = 0;
    };

    explicit ThreadPool(int threads);
    void run(int64_t count, int64_t grain, Function function, void* body);
    void work(int self);
    void worker(int self);

    const int size_;
    std::mutex callers_;
    std::unique_ptr<Part[]> parts_;
    Function function_ = nullptr;
    void* body_ = nullptr;
    int64_t grain_ = 1;
    alignas(64) std::atomic<uint32_t> generation_{0};
    alignas(64) std::atomic<bool> open_{false};
    alignas(64) std::atomic<int32_t> inside_{0};
    std::atomic<bool> stopping_{false};
    std::vector<std::thread> workers_;
};

}  // namespace qwenkit
