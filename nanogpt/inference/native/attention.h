// Keys and values of all slots, and attention over them.
//
// Each query is computed alone, over the positions of its own slot in their order, so its result
// does not depend on what else is in the step. Keys lie in blocks of LANES positions, (block, head
// size, LANES), which gives the scores of a whole block without sums across lanes; values lie as
// (position, head size). Both are read from front to end. Where the processor multiplies pairs of
// bfloat16, two numbers of a key lie side by side, and so do two positions of a value.

#pragma once

#include <type_traits>

#include "matrix.h"

/// Positions of all slots in float32 (`float`) or bfloat16 (`uint16_t`).
template <class Stored> class Cache {
  public:
    /// Numbers that one instruction multiplies and adds.
    static constexpr size_t TOGETHER =
        BFLOAT16_PRODUCTS && std::is_same_v<Stored, uint16_t> ? 2 : 1;

    Cache(size_t layers, size_t slots, size_t heads, size_t positions, size_t head_size)
        : layers_(layers), heads_(heads), head_size_(head_size),
          key_width_(padded(head_size, TOGETHER)), value_width_(padded(head_size, LANES)),
          positions_(padded(positions, LANES)),
          keys_(layers * slots * heads * positions_ * key_width_),
          values_(layers * slots * heads * positions_ * value_width_) {}

    size_t head_size() const { return head_size_; }
    size_t key_width() const { return key_width_; }      // padded with zeros
    size_t value_width() const { return value_width_; }  // padded with zeros
    size_t positions() const { return positions_; }

    Stored* keys(size_t slot, size_t layer, size_t head) const {
        return keys_.get() + ((slot * layers_ + layer) * heads_ + head) * positions_ * key_width_;
    }
    Stored* values(size_t slot, size_t layer, size_t head) const {
        return values_.get() +
               ((slot * layers_ + layer) * heads_ + head) * positions_ * value_width_;
    }

    /// Where number `i` of the key at `position` lies, relative to `keys`: a sum of what comes from
    /// the position and from `i`.
    size_t key_offset(size_t position, size_t i) const {
        return (position / LANES * key_width_ + i / TOGETHER * TOGETHER) * LANES +
               position % LANES * TOGETHER + i % TOGETHER;
    }

    /// The same of a value.
    size_t value_offset(size_t position, size_t i) const {
        return position / TOGETHER * TOGETHER * value_width_ + i * TOGETHER + position % TOGETHER;
    }

    /// Puts LANES numbers of a key, the first of which lies at `to`.
    static INLINE void put_key(Stored* to, const Stored* numbers) {
        for (size_t i = 0; i < LANES; i += TOGETHER)
            std::copy_n(numbers + i, TOGETHER, to + i * LANES);
    }

    /// The same of a value.
    static INLINE void put_value(Stored* to, const Stored* numbers) {
        for (size_t i = 0; i < LANES; i++) to[i * TOGETHER] = numbers[i];
    }

    void copy(size_t from, size_t to, size_t num_tokens) const {
        const size_t count = padded(num_tokens, LANES);
        for (size_t layer = 0; layer < layers_; layer++)
            for (size_t head = 0; head < heads_; head++) {
                std::copy_n(keys(from, layer, head), count * key_width_, keys(to, layer, head));
                std::copy_n(values(from, layer, head), count * value_width_,
                            values(to, layer, head));
            }
    }

    void clear(size_t slot) const {
        std::fill_n(keys(slot, 0, 0), layers_ * heads_ * positions_ * key_width_, Stored{});
        std::fill_n(values(slot, 0, 0), layers_ * heads_ * positions_ * value_width_, Stored{});
    }

  private:
    size_t layers_, heads_, head_size_, key_width_, value_width_, positions_;
    Memory<Stored> keys_, values_;
};

/// As they are kept in a cache.
INLINE void round_to(float* to, Floats values) { store(to, values); }
INLINE void round_to(uint16_t* to, Floats values) { store(to, to_bfloat16s(values)); }

/// Consecutive queries of one head: the first at `position`, each a row further on in q and y.
struct Queries {
    const float* q;
    size_t stride, position;
    const Activations& y;  // result of the first: numbers from `at` on in row `row`
    size_t row, at;
};

template <class Stored> class Attention {
  public:
    static constexpr int MAX_QUERIES = 4;

    Attention(const Cache<Stored>& cache) : cache_(cache) {}

    /// Floats of scratch that `attend` needs: weights of all positions, and rounded queries.
    static size_t scratch_size(const Cache<Stored>& cache) {
        return MAX_QUERIES * (cache.positions() + padded(cache.head_size()));
    }

    /// `next_keys` are likely to be needed next. A single query waits for memory more than for
    /// arithmetic: its values are asked for while its scores are computed, and then those keys.
    void attend(const Queries& queries, int count, const Stored* keys, const Stored* values,
                const Stored* next_keys, float* scratch) const {
        switch (count) {
            case 1: return attend<1>(queries, keys, values, next_keys, scratch);
            case 2: return attend<2>(queries, keys, values, next_keys, scratch);
            case 3: return attend<3>(queries, keys, values, next_keys, scratch);
            default: return attend<4>(queries, keys, values, next_keys, scratch);
        }
    }

  private:
    static constexpr size_t TOGETHER = Cache<Stored>::TOGETHER;
    static constexpr bool IN_PAIRS = TOGETHER == 2;
    using Factor = std::conditional_t<IN_PAIRS, uint16_t, float>;  // query or weight
    using Kept = std::conditional_t<IN_PAIRS, Ints, Floats>;       // vector of keys or values

    template <int COUNT>
    void attend(const Queries& queries, const Stored* keys, const Stored* values,
                const Stored* next_keys, float* scratch) const {
        float* scores = scratch + COUNT * padded(cache_.head_size());
        const Factor* rounded[COUNT];
        for (int i = 0; i < COUNT; i++)
            rounded[i] = round_query(queries.q + i * queries.stride,
                                     scratch + i * padded(cache_.head_size()));
        const size_t end = queries.position + COUNT;  // the last query's
        const size_t blocks = (end + LANES - 1) / LANES;
        Floats most[COUNT];
        for (int i = 0; i < COUNT; i++) most[i] = all(-INFINITY);
        constexpr int STEP = COUNT == 1 ? 8 : COUNT == 2 ? 4 : 2;
        Ahead ahead = ahead_of(values);
        size_t block = 0;
        for (; block + STEP <= blocks; block += STEP)
            score<COUNT, STEP>(queries, rounded, keys, block, ahead, scores, most);
        score_rest<COUNT, STEP - 1>(queries, rounded, keys, block, blocks - block, ahead, scores,
                                    most);

        float share[COUNT];
        for (int i = 0; i < COUNT; i++) {
            float* row = scores + i * cache_.positions();
            Factor* weights = reinterpret_cast<Factor*>(row);  // never ahead of what is read
            const Floats top = all(largest(most[i]));
            Floats total{};
            for (size_t b = 0; b < blocks; b++) {
                const Floats weight = exponential(load<Floats>(row + b * LANES) - top);
                round_to(weights + b * LANES, weight);
                total += weight;
            }
            share[i] = 1 / sum(total);
        }

        constexpr int MOST = WIDE || COUNT > 1 ? 4 : 8;  // vectors of a head of 64
        const size_t width = cache_.value_width();
        ahead = ahead_of(next_keys);
        size_t first = 0;
        for (; first + MOST * LANES <= width; first += MOST * LANES)
            mix<COUNT, MOST>(queries, values, first, end, ahead, scores, share);
        for (; first < width; first += LANES)
            mix<COUNT, 1>(queries, values, first, end, ahead, scores, share);
    }

    /// Asks for as much as one `load_kept` reads.
    static Ahead ahead_of(const Stored* from) {
        return {reinterpret_cast<const char*>(from), LANES * TOGETHER * sizeof(Stored)};
    }

    /// The query as it is multiplied, padded with zeros, in `room` unless it lies there already.
    const Factor* round_query(const float* query, float* room) const {
        if constexpr (IN_PAIRS) {
            const size_t size = cache_.head_size();
            std::copy_n(query, size, room);
            std::fill(room + size, room + padded(size), 0.0f);
            Factor* rounded = reinterpret_cast<Factor*>(room);  // never ahead of what is read
            for (size_t d = 0; d < size; d += LANES) round_to(rounded + d, load_floats(room + d));
            return rounded;
        } else {
            return query;
        }
    }

    /// As many blocks as are left, at most STEP, at once: one alone would wait for each addition.
    template <int COUNT, int STEP>
    INLINE void score_rest(const Queries& queries, const Factor* const* rounded, const Stored* keys,
                           size_t block, size_t num_left, Ahead& ahead, float* scores,
                           Floats* most) const {
        if constexpr (STEP > 0) {
            if (num_left == STEP)
                return score<COUNT, STEP>(queries, rounded, keys, block, ahead, scores, most);
            score_rest<COUNT, STEP - 1>(queries, rounded, keys, block, num_left, ahead, scores,
                                        most);
        }
    }

    /// Scaled scores of some blocks of positions; -infinity beyond a query's own.
    template <int COUNT, int STEP>
    INLINE void score(const Queries& queries, const Factor* const* rounded, const Stored* keys,
                      size_t block, Ahead& ahead, float* scores, Floats* most) const {
        const size_t key_width = cache_.key_width();
        const Floats scale = all(1 / std::sqrt(static_cast<float>(cache_.head_size())));
        const Stored* from = keys + block * key_width * LANES;
        Floats sums[COUNT][STEP] = {};
        for (size_t d = 0; d < key_width; d += TOGETHER)
#pragma GCC unroll 8
            for (int b = 0; b < STEP; b++) {
                if constexpr (COUNT == 1) ahead.ask();
                const Kept key = load_kept(from + (b * key_width + d) * LANES);
#pragma GCC unroll 4
                for (int i = 0; i < COUNT; i++)
                    sums[i][b] = add_products(sums[i][b], key, rounded[i] + d);
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
                    Ahead& ahead, const float* scores, const float* share) const {
        const size_t width = cache_.value_width(), head_size = cache_.head_size();
        Floats sums[COUNT][STEP] = {};
        const auto add = [&](size_t position, auto keep) __attribute__((always_inline)) {
#pragma GCC unroll 8
            for (int v = 0; v < STEP; v++) {
                if constexpr (COUNT == 1) ahead.ask();
                const Kept value = keep(
                    load_kept(values + position * width + (first + v * LANES) * TOGETHER));
#pragma GCC unroll 4
                for (int i = 0; i < COUNT; i++) {
                    const Factor* weights =
                        reinterpret_cast<const Factor*>(scores + i * cache_.positions());
                    sums[i][v] = add_products(sums[i][v], value, weights + position);
                }
            }
        };
        const auto whole = [](auto value) { return value; };
        const auto first_of_two = [](auto value) { return value & 0xffff; };
        size_t position = 0;
        for (; position + TOGETHER <= end; position += TOGETHER) add(position, whole);
        // the second of the last pair may be another sequence's, and not a number
        if constexpr (IN_PAIRS)
            if (position < end) add(position, first_of_two);
        for (int i = 0; i < COUNT; i++)
            for (int v = 0; v < STEP; v++) {
                const size_t at = first + v * LANES;
                const Floats result = sums[i][v] * all(share[i]);
                if (at + LANES <= head_size)
                    queries.y.put(queries.row + i, queries.at + at, result);
                else
                    queries.y.put(queries.row + i, queries.at + at, result, head_size - at);
            }
    }

    static INLINE Kept load_kept(const Stored* from) {
        if constexpr (IN_PAIRS) return load<Ints>(from);
        else return load_floats(from);
    }

    /// sums + the products of keys or values with the query's or weights' next number, or pair.
    static INLINE Floats add_products(Floats sums, Kept kept, const Factor* factor) {
        if constexpr (IN_PAIRS) {
            int32_t pair;
            std::memcpy(&pair, factor, sizeof pair);
            return add_pair_products(sums, kept, all_ints(pair));
        } else {
            return fma(all(*factor), kept, sums);
        }
    }

    const Cache<Stored>& cache_;
};
