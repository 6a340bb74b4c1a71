#include "thread_pool.h"

#include <pthread.h>
#include <sched.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <stdexcept>
#include <string>

namespace qwenkit {
namespace {

// A decode step issues a loop every few hundred microseconds with a little Python between: long enough a
// spin to catch the next one awake, short enough that an idle pool costs nothing.
constexpr auto spin_time = std::chrono::microseconds(60);
constexpr int max_threads = 1024;

std::atomic<ThreadPool*> current{nullptr};
std::mutex making;
int wanted = 0;  // guarded by `making`; 0: not chosen yet
std::vector<int> affinity;
thread_local bool inside_loop = false;

void pause() { __builtin_ia32_pause(); }

void forget_in_child() {
    // The old object is leaked on purpose: its workers, and perhaps the owner of its lock, are not here.
    current.store(nullptr);
    new (&making) std::mutex;
}

void bind(pthread_t thread, size_t index) {
    if (affinity.empty()) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(affinity[index % affinity.size()], &set);
    pthread_setaffinity_np(thread, sizeof set, &set);
}

}  // namespace

int ThreadPool::default_threads() {
    if (const char* text = std::getenv("QWENKIT_THREADS"); text && *text) {
        char* end = nullptr;
        const long n = std::strtol(text, &end, 10);
        if (*end || n < 1 || n > max_threads)
            throw std::invalid_argument(std::string("QWENKIT_THREADS='") + text + "' is not a number from 1 to " +
                                        std::to_string(max_threads) + ".");
        return int(n);
    }
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
    return std::max(1u, std::thread::hardware_concurrency());
}

ThreadPool& ThreadPool::shared() {
    if (ThreadPool* pool = current.load(std::memory_order_acquire)) return *pool;
    std::lock_guard lock(making);
    if (ThreadPool* pool = current.load()) return *pool;
    static const int registered = pthread_atfork(nullptr, nullptr, forget_in_child);
    (void)registered;
    if (wanted == 0) wanted = default_threads();
    auto* pool = new ThreadPool(wanted);
    current.store(pool, std::memory_order_release);
    return *pool;
}

int ThreadPool::threads() { return shared().size_; }

void ThreadPool::set_threads(int count) {
    if (count < 1 || count > max_threads)
        throw std::invalid_argument("Thread count " + std::to_string(count) + " is not from 1 to " +
                                    std::to_string(max_threads) + ".");
    std::lock_guard lock(making);
    wanted = count;
    ThreadPool* old = current.exchange(nullptr);
    if (!old) return;
    // Another Python thread may hold a reference it took a moment ago: the object stays, its workers go.
    std::lock_guard callers(old->callers_);
    old->stopping_.store(true);
    old->generation_.fetch_add(1);
    old->generation_.notify_all();
    for (auto& t : old->workers_) t.join();
    old->workers_.clear();
}

void ThreadPool::set_affinity(const std::vector<int>& cpus) {
    for (int cpu : cpus)
        if (cpu < 0 || cpu >= CPU_SETSIZE) throw std::invalid_argument("No CPU " + std::to_string(cpu) + ".");
    const int count = threads();
    {
        std::lock_guard lock(making);
        affinity = cpus;
    }
    set_threads(count);
}

ThreadPool::ThreadPool(int threads) : size_(threads), parts_(new Part[size_t(threads)]) {
    workers_.reserve(size_t(threads));
    for (int i = 1; i < threads; i++) {
        workers_.emplace_back([this, i] { worker(i); });
        bind(workers_.back().native_handle(), size_t(i));
    }
}

ThreadPool::~ThreadPool() = default;

void ThreadPool::worker(int self) {
    inside_loop = true;
    uint32_t seen = 0;
    for (;;) {
        uint32_t now = generation_.load(std::memory_order_acquire);
        const auto start = std::chrono::steady_clock::now();
        while (now == seen) {
            for (int i = 0; i < 64 && now == seen; i++) {
                pause();
                now = generation_.load(std::memory_order_acquire);
            }
            if (now == seen && std::chrono::steady_clock::now() - start > spin_time) {
                generation_.wait(seen, std::memory_order_acquire);
                now = generation_.load(std::memory_order_acquire);
            }
        }
        seen = now;
        if (stopping_.load()) return;
        // Announce, then look: the caller closes, then counts. One of the two sees the other (seq_cst).
        inside_.fetch_add(1);
        if (open_.load()) work(self);
        inside_.fetch_sub(1, std::memory_order_release);
    }
}

void ThreadPool::work(int self) {
    for (int i = 0; i < size_; i++) {
        Part& part = parts_[(self + i) % size_];
        for (;;) {
            const int64_t begin = part.next.fetch_add(grain_, std::memory_order_relaxed);
            if (begin >= part.end) break;
            function_(body_, begin, std::min(begin + grain_, part.end));
        }
    }
}

void ThreadPool::run(int64_t count, int64_t grain, Function function, void* body) {
    if (count <= 0) return;
    grain = std::max<int64_t>(grain, 1);
    if (inside_loop || size_ == 1 || count <= grain) {
        function(body, 0, count);
        return;
    }
    std::lock_guard lock(callers_);
    function_ = function;
    body_ = body;
    grain_ = grain;
    const int64_t steps = (count + grain - 1) / grain;
    for (int i = 0; i < size_; i++) {
        parts_[i].next.store(std::min(steps * i / size_ * grain, count), std::memory_order_relaxed);
        parts_[i].end = std::min(steps * (i + 1) / size_ * grain, count);
    }
    open_.store(true);
    generation_.fetch_add(1);
    generation_.notify_all();
    inside_loop = true;
    work(0);
    inside_loop = false;
    // A worker that has not woken yet finds the loop closed: nobody waits for it.
    open_.store(false);
    while (inside_.load() != 0) pause();
}

}  // namespace qwenkit
