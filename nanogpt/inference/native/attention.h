// Keys and values of all slots, and attention over them.
//
// Each query is computed alone, over the positions of its own slot in their order, so its result
// does not depend on what else is in the step. Keys lie in blocks of LANES positions, (block, head
// size, LANES), which gives the scores of a whole block without sums across lanes; values lie as
// (position, head size). Both are read from front to end.

#pragma once

#include "matrix.h"

/// Positions of all slots in float32 (`float`) or bfloat16 (`uint16_t`).
template <class Stored> class Cache {
  public:
    Cache(size_t layers, size_t slots, size_t heads, size_t positions, size_t head_size)
        : layers_(layers), heads_(heads), head_size_(head_size), width_(padded(head_size, LANES)),
          positions_(padded(positions, LANES)),
          keys_(layers * slots * heads * positions_ * head_size),
          values_(layers * slots * heads * positions_ * width_) {}

    size_t head_size() const { return head_size_; }
    size_t width() const { return width_; }  // of a value, padded with zeros
    size_t positions() const { return positions_; }

    Stored* keys(size_t slot, size_t layer, size_t head) const {
        return keys_.get() + ((slot * layers_ + layer) * heads_ + head) * positions_ * head_size_;
    }
    Stored* values(size_t slot, size_t layer, size_t head) const {
        return values_.get() + ((slot * layers_ + layer) * heads_ + head) * positions_ * width_;
    }

    /// Where number `i` of the key at `position` lies, relative to `keys`.
    size_t key_offset(size_t position, size_t i) const {
        return (position / LANES * head_size_ + i) * LANES + position % LANES;
    }

    void copy(size_t from, size_t to, size_t num_tokens) const {
        const size_t count = padded(num_tokens, LANES);
        for (size_t layer = 0; layer < layers_; layer++)
            for (size_t head = 0; head < heads_; head++) {
                std::copy_n(keys(from, layer, head), count * head_size_, keys(to, layer, head));
                std::copy_n(values(from, layer, head), count * width_, values(to, layer, head));
            }
    }

    void clear(size_t slot) const {
        std::fill_n(keys(slot, 0, 0), layers_ * heads_ * positions_ * head_size_, Stored{});
        std::fill_n(values(slot, 0, 0), layers_ * heads_ * positions_ * width_, Stored{});
    }

  private:
    size_t layers_, heads_, head_size_, width_, positions_;
    Memory<Stored> keys_, values_;
};

INLINE void put(float* to, float value) { *to = value; }
INLINE void put(uint16_t* to, float value) { *to = to_bfloat16(value); }

/// Consecutive queries of one head: the first at `position`, each a row further on in q and y.
struct Queries {
    const float* q;
    float* y;
    size_t stride, position;
};

template <class Stored> class Attention {
  public:
    static constexpr int MAX_QUERIES = 4;

    Attention(const Cache<Stored>& cache) : cache_(cache) {}

    /// Floats of scratch that `attend` needs.
    static size_t scratch_size(const Cache<Stored>& cache) {
        return MAX_QUERIES * cache.positions();
    }

    void attend(const Queries& queries, int count, const Stored* keys, const Stored* values,
                float* scratch) const {
        switch (count) {
            case 1: return attend<1>(queries, keys, values, scratch);
            case 2: return attend<2>(queries, keys, values, scratch);
            case 3: return attend<3>(queries, keys, values, scratch);
            default: return attend<4>(queries, keys, values, scratch);
        }
    }

  private:
    template <int COUNT>
    void attend(const Queries& queries, const Stored* keys, const Stored* values,
                float* scores) const {
        const size_t end = queries.position + COUNT;  // the last query's
        const size_t blocks = (end + LANES - 1) / LANES;
        Floats most[COUNT];
        for (int i = 0; i < COUNT; i++) most[i] = all(-INFINITY);
        constexpr int STEP = COUNT == 1 ? 8 : COUNT == 2 ? 4 : 2;
        size_t block = 0;
        for (; block + STEP <= blocks; block += STEP)
            score<COUNT, STEP>(queries, keys, block, scores, most);
        score_rest<COUNT, STEP - 1>(queries, keys, block, blocks - block, scores, most);

        float share[COUNT];
        for (int i = 0; i < COUNT; i++) {
            float* row = scores + i * cache_.positions();
            const Floats top = all(largest(most[i]));
            Floats total{};
            for (size_t b = 0; b < blocks; b++) {
                const Floats weight = exponential(load<Floats>(row + b * LANES) - top);
                store(row + b * LANES, weight);
                total += weight;
            }
            share[i] = 1 / sum(total);
        }

        constexpr int MOST = WIDE || COUNT > 1 ? 4 : 8;  // vectors of a head of 64
        const size_t width = cache_.width();
        size_t first = 0;
        for (; first + MOST * LANES <= width; first += MOST * LANES)
            mix<COUNT, MOST>(queries, values, first, end, scores, share);
        for (; first < width; first += LANES)
            mix<COUNT, 1>(queries, values, first, end, scores, share);
    }

    /// As many blocks as are left, at most STEP, at once: one alone would wait for each addition.
    template <int COUNT, int STEP>
    INLINE void score_rest(const Queries& queries, const Stored* keys, size_t block, size_t num_left,
                           float* scores, Floats* most) const {
        if constexpr (STEP > 0) {
            if (num_left == STEP) return score<COUNT, STEP>(queries, keys, block, scores, most);
            score_rest<COUNT, STEP - 1>(queries, keys, block, num_left, scores, most);
        }
    }

    /// Scaled scores of some blocks of positions; -infinity beyond a query's own.
    template <int COUNT, int STEP>
    INLINE void score(const Queries& queries, const Stored* keys, size_t block, float* scores,
                      Floats* most) const {
        const size_t head_size = cache_.head_size();
        const Floats scale = all(1 / std::sqrt(static_cast<float>(head_size)));
        const Stored* from = keys + block * head_size * LANES;
        Floats sums[COUNT][STEP] = {};
        for (size_t d = 0; d < head_size; d++)
#pragma GCC unroll 8
            for (int b = 0; b < STEP; b++) {
                const Floats key = load_floats(from + (b * head_size + d) * LANES);
#pragma GCC unroll 4
                for (int i = 0; i < COUNT; i++)
                    sums[i][b] = fma(all(queries.q[i * queries.stride + d]), key, sums[i][b]);
            }
        for (int i = 0; i < COUNT; i++)
            for (int b = 0; b < STEP; b++) {
                const int past = static_cast<int>((block + b) * LANES);
                const int last = static_cast<int>(queries.position) + i;
                const Floats score = lane_numbers() + past > last ? all(-INFINITY)
                                                                  : sums[i][b] * scale;
                store(scores + i * cache_.positions() + past, score);
                most[i] = larger(most[i], score);
            }
    }

    /// Weighted sums of values, for STEP vectors of the head's numbers from `first` on.
    template <int COUNT, int STEP>
    INLINE void mix(const Queries& queries, const Stored* values, size_t first, size_t end,
                    const float* weights, const float* share) const {
        const size_t width = cache_.width(), head_size = cache_.head_size();
        Floats sums[COUNT][STEP] = {};
        for (size_t position = 0; position < end; position++)
#pragma GCC unroll 8
            for (int v = 0; v < STEP; v++) {
                const Floats value = load_floats(values + position * width + first + v * LANES);
#pragma GCC unroll 4
                for (int i = 0; i < COUNT; i++)
                    sums[i][v] =
                        fma(all(weights[i * cache_.positions() + position]), value, sums[i][v]);
            }
        for (int i = 0; i < COUNT; i++)
            for (int v = 0; v < STEP; v++) {
                const size_t at = first + v * LANES;
                const Floats result = sums[i][v] * all(share[i]);
                float* y = queries.y + i * queries.stride + at;
                if (at + LANES <= head_size)
                    store(y, result);
                else
                    std::memcpy(y, &result, (head_size - at) * sizeof(float));
            }
    }

    const Cache<Stored>& cache_;
};
