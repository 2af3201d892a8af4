// Threads that share the tasks of one loop after another.
//
// Tasks are claimed one by one, so a thread that has lost its core to another process delays only
// the task it holds. Idle threads watch for work for a moment, since the next loop of a forward
// pass follows within microseconds, and then sleep: spinning would take the core from others.

#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

class Pool {
  public:
    /// The calling thread counts as one of `num_threads`.
    explicit Pool(int num_threads) : num_threads_(num_threads) {
        for (int index = 1; index < num_threads; index++)
            workers_.emplace_back([this, index] { work(index); });
    }

    ~Pool() {
        ticket_.store(STOP, std::memory_order_release);
        ticket_.notify_all();
        for (std::thread& worker : workers_) worker.join();
    }

    int num_threads() const { return num_threads_; }

    /// Calls task(index, thread) for each index below num_tasks, and returns when all are done.
    /// Only one thread may call this at a time.
    template <class Task> void run(int num_tasks, const Task& task) {
        if (workers_.empty() || num_tasks <= 1) {
            for (int index = 0; index < num_tasks; index++) task(index, 0);
            return;
        }
        call_ = [](const void* context, int index, int thread) {
            (*static_cast<const Task*>(context))(index, thread);
        };
        context_ = &task;
        num_done_.store(0, std::memory_order_relaxed);
        epoch_ = (epoch_ + 1) & EPOCH_MASK;
        const uint64_t ticket = epoch_ << (2 * BITS) | static_cast<uint64_t>(num_tasks) << BITS;
        ticket_.store(ticket, std::memory_order_seq_cst);
        if (num_asleep_.load(std::memory_order_seq_cst)) ticket_.notify_all();
        work_on_tasks(0);
        for (int spin = 0; num_done_.load(std::memory_order_acquire) != num_tasks; spin++) {
            pause();
            if (spin > SPINS) std::this_thread::yield();
        }
    }

  private:
    // a ticket is what there is to claim: epoch, number of tasks, next task. Claiming adds 1 to
    // the whole, so whoever claims also learns which loop its task belongs to, and that loop
    // cannot end, nor call_ and context_ change, before the task is done.
    static constexpr int BITS = 20;
    static constexpr uint64_t FIELD_MASK = (1u << BITS) - 1;
    static constexpr uint64_t EPOCH_MASK = (1u << 23) - 1;
    static constexpr uint64_t STOP = uint64_t{1} << 63;
    static constexpr int SPINS = 4000;  // some 50 to 100 microseconds

    static int tasks_of(uint64_t ticket) { return static_cast<int>(ticket >> BITS & FIELD_MASK); }
    static int next_of(uint64_t ticket) { return static_cast<int>(ticket & FIELD_MASK); }

    static void pause() {
#if defined(__x86_64__)
        _mm_pause();
#elif defined(__aarch64__)
        __asm__ __volatile__("yield");
#endif
    }

    void work_on_tasks(int thread) {
        for (;;) {
            uint64_t ticket = ticket_.load(std::memory_order_acquire);
            if (next_of(ticket) >= tasks_of(ticket)) return;
            ticket = ticket_.fetch_add(1, std::memory_order_acq_rel);
            if (next_of(ticket) >= tasks_of(ticket)) return;
            call_(context_, next_of(ticket), thread);
            num_done_.fetch_add(1, std::memory_order_release);
        }
    }

    void work(int thread) {
        int spin = 0;
        for (;;) {
            const uint64_t ticket = ticket_.load(std::memory_order_acquire);
            if (ticket & STOP) return;
            if (next_of(ticket) < tasks_of(ticket)) {
                work_on_tasks(thread);
                spin = 0;
            } else if (++spin < SPINS) {
                pause();
            } else {
                num_asleep_.fetch_add(1, std::memory_order_seq_cst);
                ticket_.wait(ticket, std::memory_order_seq_cst);
                num_asleep_.fetch_sub(1, std::memory_order_seq_cst);
                spin = 0;
            }
        }
    }

    const int num_threads_;
    std::vector<std::thread> workers_;
    void (*call_)(const void*, int, int) = nullptr;
    const void* context_ = nullptr;
    uint64_t epoch_ = 0;
    alignas(64) std::atomic<uint64_t> ticket_{0};
    alignas(64) std::atomic<int> num_done_{0};
    alignas(64) std::atomic<int> num_asleep_{0};
};
