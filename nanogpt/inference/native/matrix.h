// One linear layer: packed weights, a bias, and the product with rows of activations.

#pragma once

#include <cstdlib>
#include <memory>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "pool.h"
#include "weights.h"

enum class Precision : int { FLOAT32 = 0, BFLOAT16 = 1, INT8 = 2, INT4 = 3 };

/// Zeroed memory that starts on a cache line, in large pages if the system has some.
template <class T> class Memory {
  public:
    Memory() = default;
    explicit Memory(size_t count) {
        constexpr size_t LARGE_PAGE = 2 << 20;
        const size_t alignment = count * sizeof(T) < LARGE_PAGE ? 64 : LARGE_PAGE;
        const size_t size = padded(std::max<size_t>(count * sizeof(T), 1), alignment);
#if defined(__linux__)
        if (alignment == LARGE_PAGE) {  // pages of zeros, which take no memory until written
            void* mapped = mmap(nullptr, size + LARGE_PAGE, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
            if (mapped == MAP_FAILED) throw std::bad_alloc();
            const size_t start = padded(reinterpret_cast<size_t>(mapped), LARGE_PAGE);
            madvise(reinterpret_cast<void*>(start), size, MADV_HUGEPAGE);
            data_ = {reinterpret_cast<T*>(start), {mapped, size + LARGE_PAGE}};
            return;
        }
#endif
        void* allocated = std::aligned_alloc(alignment, size);
        if (!allocated) throw std::bad_alloc();
        std::memset(allocated, 0, size);
        data_ = {static_cast<T*>(allocated), {nullptr, 0}};
    }

    T* get() const { return data_.get(); }
    T& operator[](size_t index) const { return data_.get()[index]; }

  private:
    struct Free {
        void* mapped = nullptr;
        size_t mapped_size = 0;
        void operator()(T* data) const {
#if defined(__linux__)
            if (mapped) {
                munmap(mapped, mapped_size);
                return;
            }
#endif
            std::free(data);
        }
    };
    std::unique_ptr<T, Free> data_;
};

/// Room for activations, and for their rounded forms where a precision asks for them.
class Activations {
  public:
    Activations() = default;
    Activations(Precision precision, size_t num_rows, size_t num_inputs)
        : precision_(precision), inputs_(padded(num_inputs)), floats_(num_rows * inputs_) {
        if (precision == Precision::BFLOAT16 && BFLOAT16_PRODUCTS) {
            halves_ = Memory<uint16_t>(num_rows * inputs_);
        } else if (precision == Precision::INT8 && !QUAD_PRODUCTS) {
            shorts_ = Memory<int16_t>(num_rows * inputs_);
            scales_ = Memory<float>(num_rows);
        } else if (precision == Precision::INT8 || precision == Precision::INT4) {
            bytes_ = Memory<int8_t>(num_rows * inputs_);
            scales_ = Memory<float>(num_rows * inputs_ / GROUP);
            offsets_ = Memory<int32_t>(num_rows * inputs_ / GROUP);
        }
    }

    float* row(size_t row) const { return floats_.get() + row * inputs_; }
    size_t stride() const { return inputs_; }

    /// Whether what was `put` has to be rounded once its row is complete, since a scale depends on
    /// all of it.
    bool needs_rounding() const { return scales_.get(); }

    /// Puts the first `count` of LANES numbers where they are multiplied, or where `round` will
    /// look for them.
    INLINE void put(size_t index, size_t at, Floats values, size_t count = LANES) const {
        if (halves_.get()) {
            const HalfWords rounded = to_bfloat16s(values);
            std::memcpy(halves_.get() + index * inputs_ + at, &rounded, count * sizeof(uint16_t));
        } else {
            std::memcpy(row(index) + at, &values, count * sizeof(float));
        }
    }

    Rows rows() const {
        return {inputs_,      floats_.get(), halves_.get(), shorts_.get(),
                bytes_.get(), scales_.get(), offsets_.get()};
    }

    /// To be called once a row lies in `row`, complete, and before it is multiplied.
    void round(size_t index) const {
        const float* from = row(index);
        if (halves_.get()) {
            uint16_t* to = halves_.get() + index * inputs_;
            for (size_t k = 0; k < inputs_; k += LANES)
                store(to + k, to_bfloat16s(load_floats(from + k)));
        } else if (shorts_.get()) {
            int16_t* to = shorts_.get() + index * inputs_;
            scales_[index] = round_values(from, inputs_, largest_short(inputs_), to);
        } else if (bytes_.get()) {
            for (size_t k = 0; k < inputs_; k += GROUP) {
                const size_t group = (index * inputs_ + k) / GROUP;
                int8_t* to = bytes_.get() + index * inputs_ + k;
                scales_[group] = round_values(from + k, GROUP, 127, to);
                int32_t total = 0;
                for (int i = 0; i < GROUP; i++) total += to[i];
                offsets_[group] = -(precision_ == Precision::INT8 ? INT8_ZERO : INT4_ZERO) * total;
            }
        }
    }

  private:
    /// Whole numbers of at most `limit` in proportion to `from`; returns what 1 stands for. NaN and
    /// infinity make that NaN, so that they are not lost.
    template <class Whole>
    static float round_values(const float* from, size_t count, float limit, Whole* to) {
        Floats most{}, poison{};
        for (size_t k = 0; k < count; k += LANES) {
            const Floats values = load_floats(from + k);
            most = larger(most, magnitude(values));
            poison += values - values;  // 0, or NaN
        }
        const float top = largest(most);
        const float inverse = top > 0 ? limit / top : 0;
        for (size_t k = 0; k < count; k += LANES) {
            const Ints whole = to_ints(nearest(load_floats(from + k) * all(inverse)));
            if constexpr (sizeof(Whole) == 2)
                store(to + k, __builtin_convertvector(whole, HalfShorts));
            else
                store(to + k, __builtin_convertvector(whole, QuarterBytes));
        }
        return top / limit + sum(poison);
    }

    Precision precision_ = Precision::FLOAT32;
    size_t inputs_ = 0;
    Memory<float> floats_;
    Memory<uint16_t> halves_;
    Memory<int16_t> shorts_;
    Memory<int8_t> bytes_;
    Memory<float> scales_;
    Memory<int32_t> offsets_;
};

class Matrix {
  public:
    static constexpr int MAX_PANELS = 4;   // one task's
    static constexpr int MAX_ROWS = 256;   // computed at a time by one task

    Matrix() = default;

    /// Packs w, (num_outputs, num_inputs) by rows; bias is (num_outputs,), or null for none.
    Matrix(Precision precision, const float* w, const float* bias, size_t num_outputs,
           size_t num_inputs, Pool& pool)
        : precision_(precision), inputs_(padded(num_inputs)), outputs_(padded(num_outputs, PANEL)) {
        const int num_panels = static_cast<int>(outputs_ / PANEL);
        with_kind([&](auto kind) { panel_bytes_ = kind.panel_bytes(inputs_); });
        panels_ = Memory<char>(num_panels * panel_bytes_);
        set_next(*this);
        scales_ = Memory<float>(outputs_);
        bias_ = Memory<float>(outputs_);
        if (bias) std::copy(bias, bias + num_outputs, bias_.get());
        const Source source{w, num_outputs, num_inputs};
        pool.run(num_panels, [&](int index, int) {
            with_kind([&](auto kind) {
                char* panel = panels_.get() + index * panel_bytes_;
                kind.pack(source, size_t{PANEL} * index, inputs_, panel, scales_.get());
            });
        });
    }

    /// Says which matrix is multiplied after this one: its beginning is asked for in good time.
    void set_next(const Matrix& next) { next_ = next.panels_.get(); }

    /// Outputs, with the padding that `multiply` computes too.
    size_t num_outputs() const { return outputs_; }
    size_t num_bytes() const { return outputs_ / PANEL * panel_bytes_; }

    /// Calls finish(row, output, y) with LANES outputs of a row, bias added, for all of them.
    template <class Finish>
    void multiply(Pool& pool, const Rows& x, int num_rows, const Finish& finish) const {
        const int num_panels = static_cast<int>(outputs_ / PANEL);
        // a few tasks for each thread, so that none waits long for another
        const int per_task = std::clamp(num_panels / (3 * pool.num_threads()), 1, MAX_PANELS);
        const int num_tasks = (num_panels + per_task - 1) / per_task;
        pool.run(num_tasks, [&](int task, int) {
            alignas(64) float y[MAX_ROWS * MAX_PANELS * PANEL];
            const int first = task * per_task;
            const int count = std::min(per_task, num_panels - first);
            // what this thread is likely to multiply next, if all are as fast as each other
            const int next = first + per_task * pool.num_threads();
            const char* after = next < num_panels ? panels_.get() + next * panel_bytes_ : next_;
            for (int row = 0; row < num_rows; row += MAX_ROWS) {
                const int rows = std::min(MAX_ROWS, num_rows - row);
                with_kind([&](auto kind) {
                    multiply_panels<decltype(kind)>(x.from(row), rows, first, count, after, y);
                });
                for (int r = 0; r < rows; r++)
                    for (int v = 0; v < 2 * count; v++) {
                        const size_t output = first * PANEL + v * LANES;
                        const Floats sums = load<Floats>(y + r * count * PANEL + v * LANES);
                        finish(row + r, output, sums + load<Floats>(bias_.get() + output));
                    }
            }
        });
    }

  private:
    template <class Function> void with_kind(const Function& function) const {
        switch (precision_) {
            case Precision::FLOAT32: return function(Float32{});
            case Precision::BFLOAT16: return function(BFloat16{});
            case Precision::INT8: return function(Int8{});
            case Precision::INT4: return function(Int4{});
        }
    }

    /// y, (rows, count * PANEL), from a few panels. Never inlined: one copy of all kernels compiles
    /// in seconds.
    template <class Kind>
    __attribute__((noinline)) void multiply_panels(const Rows& x, int rows, int first, int count,
                                                   const char* after, float* y) const {
        const char* panels = panels_.get() + first * panel_bytes_;
        const float* scales = scales_.get() + first * PANEL;
        if (rows > Kind::PACKED_ROWS)
            return multiply_many<Kind>(x, rows, panels, after, scales, count, y);
        const int num_tiles = (rows + Kind::FEW_ROWS - 1) / Kind::FEW_ROWS;
        for (int tile = 0, row = 0; tile < num_tiles; tile++) {
            const int last = (tile + 1) * rows / num_tiles;
            multiply_few<Kind, Kind::FEW_ROWS>(x.from(row), last - row, panels, scales, count,
                                               y + row * count * PANEL);
            row = last;
        }
    }

    /// Finds the kernel for this number of rows, at most ROWS.
    template <class Kind, int ROWS>
    void multiply_few(const Rows& x, int rows, const char* panels, const float* scales, int count,
                      float* y) const {
        if constexpr (ROWS > 1)
            if (rows < ROWS)
                return multiply_few<Kind, ROWS - 1>(x, rows, panels, scales, count, y);
        // few rows leave registers for several panels at a time
        constexpr int PANELS = ROWS == 1 ? 4 : ROWS == 2 ? 2 : 1;
        const size_t stride = count * PANEL;
        int panel = 0;
        for (; panel + PANELS <= count; panel += PANELS)
            Kind::template multiply<ROWS, PANELS>(x, panels + panel * panel_bytes_,
                                                  scales + panel * PANEL, y + panel * PANEL, stride);
        for (; panel < count; panel++)
            Kind::template multiply<ROWS, 1>(x, panels + panel * panel_bytes_,
                                             scales + panel * PANEL, y + panel * PANEL, stride);
    }

    /// Blocks of inputs outermost: those of all rows stay in the second cache while the panels
    /// pass by, and a panel's in the first while the rows do. Weights that come next are asked for
    /// meanwhile, at last those of `after`.
    template <class Kind>
    void multiply_many(const Rows& x, int rows, const char* panels, const char* after,
                       const float* scales, int count, float* y) const {
        alignas(64) char unpacked[std::max<size_t>(Kind::UNPACKED_BYTES, 1)];
        const int num_tiles = (rows + Kind::MAX_ROWS - 1) / Kind::MAX_ROWS;
        for (size_t begin = 0; begin < inputs_; begin += Kind::BLOCK) {
            const size_t end = std::min(begin + Kind::BLOCK, inputs_);
            for (int panel = 0; panel < count; panel++) {
                const void* block =
                    Kind::unpack(panels + panel * panel_bytes_, begin, end, unpacked);
                const char* next = after;
                if (panel + 1 < count)
                    next = panels + (panel + 1) * panel_bytes_ + Kind::panel_bytes(begin);
                else if (end < inputs_)
                    next = panels + Kind::panel_bytes(end);
                const size_t share = Kind::panel_bytes(end - begin) / num_tiles;
                const size_t step = share / ((end - begin) / Kind::INPUTS_PER_ASK);
                for (int tile = 0, row = 0; tile < num_tiles; tile++, next += share) {
                    const int last = (tile + 1) * rows / num_tiles;
                    multiply_tile<Kind, Kind::MAX_ROWS>(
                        x.from(row), last - row, block, scales + panel * PANEL, begin, end,
                        {next, step}, y + (row * count + panel) * PANEL, count * PANEL);
                    row = last;
                }
            }
        }
    }

    template <class Kind, int ROWS>
    static void multiply_tile(const Rows& x, int rows, const void* block, const float* scales,
                              size_t begin, size_t end, Ahead ahead, float* y, size_t stride) {
        if constexpr (ROWS > 1)
            if (rows < ROWS)
                return multiply_tile<Kind, ROWS - 1>(x, rows, block, scales, begin, end, ahead, y,
                                                     stride);
        multiply_block<Kind, ROWS>(x, block, scales, begin, end, ahead, y, stride);
    }

    /// Never inlined: what the callers keep in registers would be taken from the sums.
    template <class Kind, int ROWS>
    __attribute__((noinline)) static void multiply_block(const Rows& x, const void* block,
                                                         const float* scales, size_t begin,
                                                         size_t end, Ahead ahead, float* y,
                                                         size_t stride) {
        Kind::template multiply_block<ROWS>(x, block, scales, begin, end, ahead, y, stride);
    }

    Precision precision_ = Precision::FLOAT32;
    size_t inputs_ = 0, outputs_ = 0, panel_bytes_ = 0;
    Memory<char> panels_;
    const char* next_ = nullptr;  // first panel of the next matrix
    Memory<float> scales_;  // int8: one for each output
    Memory<float> bias_;
};
