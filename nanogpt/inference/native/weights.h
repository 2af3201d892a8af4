// How weights are held, and the innermost loops over them: one struct for each precision.
//
// A matrix of N outputs and K inputs is packed into panels of PANEL outputs, each read from front
// to end. `multiply<ROWS, PANELS>` computes ROWS rows of activations times PANELS panels as they
// are packed. For more rows than that, `unpack` turns BLOCK inputs of a panel into what arithmetic
// wants, once, and `multiply_block<ROWS>` runs over it while it lies in the first cache; y holds
// the sums of the blocks before. Either way, and whatever ROWS and PANELS are, the sum of one
// output runs over K in the same order, so a row's result has the same bits alone and in company.
//
// float32             products are added in the order of K
// bfloat16            the same in float32; where the processor multiplies bfloat16, activations are
//                     rounded to it and products are added in pairs
// int8                one scale for each output. Where the processor multiplies quads of bytes,
//                     activations are as for int4; else they are rounded to 16 bits with one scale
//                     for each row, and the sum over K is a whole number, which is exact
// int4                one scale for each output and GROUP inputs; activations are rounded to 8 bits
//                     with one scale for each row and GROUP. Whole numbers within a group, float32
//                     sums over groups, in their order

#pragma once

#include <algorithm>
#include <vector>

#include "vectors.h"

constexpr int PANEL = 2 * LANES;
constexpr int GROUP = 32;  // of llama.cpp's Q4_0 and Q8_0 too

// what is stored for a weight of 0 where unsigned bytes are multiplied: 1..255 mean -127..127, and
// 0..15 mean -8..7
constexpr int INT8_ZERO = 128, INT4_ZERO = 8;

/// What all rows of activations, and all inputs of a matrix, are padded to with zeros.
inline size_t padded(size_t count, size_t multiple = GROUP) {
    return (count + multiple - 1) / multiple * multiple;
}

/// Rows of activations as the kernels of one precision read them; `inputs` is their stride.
struct Rows {
    size_t inputs = 0;
    const float* floats = nullptr;    // (rows, inputs)
    const uint16_t* halves = nullptr; // (rows, inputs), bfloat16
    const int16_t* shorts = nullptr;  // (rows, inputs)
    const int8_t* bytes = nullptr;    // (rows, inputs)
    const float* scales = nullptr;    // of shorts: (rows,); of bytes: (rows, inputs / GROUP)
    const int32_t* offsets = nullptr; // of bytes, as `scales`: takes off what unsigned weights add

    Rows from(size_t row) const {
        Rows rest = *this;
        const size_t groups = inputs / GROUP;
        rest.floats += row * inputs;
        if (halves) rest.halves += row * inputs;
        if (shorts) rest.shorts += row * inputs, rest.scales += row;
        if (bytes)
            rest.bytes += row * inputs, rest.scales += row * groups, rest.offsets += row * groups;
        return rest;
    }
};

/// PANEL weights of one input each, or 0 beyond the matrix: w is (num_outputs, num_inputs).
struct Source {
    const float* w;
    size_t num_outputs, num_inputs;

    float operator()(size_t output, size_t input) const {
        return output < num_outputs && input < num_inputs ? w[output * num_inputs + input] : 0;
    }
};

/// Memory that is needed soon, asked for a few lines at a time beside the arithmetic: all at once,
/// the requests would hold it up.
struct Ahead {
    const char* next;
    size_t step;  // bytes

    INLINE void ask() {
        __builtin_prefetch(next, 0, 2);  // into the second cache
        next += step;
    }
};

/// Activations 4 i to 4 i + 3 of a group, in every lane.
INLINE Ints four(const Rows& x, int row, size_t group, int i) {
    int32_t values;
    std::memcpy(&values, x.bytes + row * x.inputs + group * GROUP + 4 * i, sizeof values);
    return all_ints(values);
}

template <int ROWS>
INLINE void load_sums(Floats (&sums)[ROWS][2], const float* y, size_t y_stride) {
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 2
        for (int v = 0; v < 2; v++) sums[r][v] = load<Floats>(y + r * y_stride + v * LANES);
}

template <int ROWS, int PANELS>
INLINE void store_sums(const Floats (&sums)[ROWS][2 * PANELS], float* y, size_t y_stride) {
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++)
#pragma GCC unroll 8
        for (int v = 0; v < 2 * PANELS; v++) store(y + r * y_stride + v * LANES, sums[r][v]);
}

/// Unsigned weights of eight inputs: of the first four in the halves of a panel, of the others.
struct Octet {
    Bytes first[2], second[2];

    static INLINE Octet at(const char* from) {
        return {{load<Bytes>(from), load<Bytes>(from + sizeof(Bytes))},
                {load<Bytes>(from + 2 * sizeof(Bytes)), load<Bytes>(from + 3 * sizeof(Bytes))}};
    }
};

/// sums[][at] and sums[][at + 1] += the products with GROUP inputs: whole numbers, scaled.
/// `octet(i)` gives the weights of inputs 8 i to 8 i + 7, `scaled(scale, half)` what 1 stands for in
/// a half of the panel, where `scale` is that of the activations.
template <int ROWS, int COUNT, class Octets, class Scaled>
INLINE void add_group(Floats (&sums)[ROWS][COUNT], int at, const Rows& x, size_t group,
                      const Octets& octet, const Scaled& scaled) {
    QuadSums quads[ROWS][2];
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
        const Ints start = all_ints(x.offsets[r * (x.inputs / GROUP) + group]);
        quads[r][0] = {start}, quads[r][1] = {start};
    }
#pragma GCC unroll 1  // else GCC keeps all products and adds them up in the end
    for (int i = 0; i < GROUP / 8; i++) {
        const Octet w = octet(i);
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            const Ints first = four(x, r, group, 2 * i), second = four(x, r, group, 2 * i + 1);
            quads[r][0].add(w.first[0], first), quads[r][1].add(w.first[1], first);
            quads[r][0].add(w.second[0], second), quads[r][1].add(w.second[1], second);
        }
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; r++) {
        const Floats scale = all(x.scales[r * (x.inputs / GROUP) + group]);
        for (int half = 0; half < 2; half++)
            sums[r][at + half] = fma(to_floats(quads[r][half].total()), scaled(scale, half),
                                     sums[r][at + half]);
    }
}

struct Float32 {
    static constexpr int MAX_ROWS = WIDE ? 8 : 6;  // with registers to spare for loads
    static constexpr int FEW_ROWS = MAX_ROWS;      // the same, of weights as packed
    static constexpr int PACKED_ROWS = MAX_ROWS;   // for more, unpacking pays
    static constexpr size_t BLOCK = 256;
    static constexpr size_t INPUTS_PER_ASK = 1;    // how often `multiply_block` calls `ask`
    static constexpr size_t UNPACKED_BYTES = 0;
    static size_t panel_bytes(size_t inputs) { return inputs * PANEL * sizeof(float); }

    static void pack(const Source& source, size_t first, size_t inputs, char* panel, float*) {
        float* to = reinterpret_cast<float*>(panel);
        for (size_t k = 0; k < inputs; k++)
            for (int j = 0; j < PANEL; j++) *to++ = source(first + j, k);
    }

    template <int ROWS, int PANELS>
    static INLINE void multiply(const Rows& x, const char* panels, const float*, float* y,
                                size_t y_stride) {
        const float* w = reinterpret_cast<const float*>(panels);
        Floats sums[ROWS][2 * PANELS] = {};
        for (size_t k = 0; k < x.inputs; k++)
            add_products<ROWS, PANELS>(sums, x, k, w + k * PANEL, x.inputs * PANEL);
        store_sums<ROWS, PANELS>(sums, y, y_stride);
    }

    static const void* unpack(const char* panel, size_t begin, size_t, void*) {
        return panel + panel_bytes(begin);
    }

    template <int ROWS>
    static INLINE void multiply_block(const Rows& x, const void* block, const float*, size_t begin,
                                      size_t end, Ahead ahead, float* y, size_t y_stride) {
        const float* w = static_cast<const float*>(block);
        Floats sums[ROWS][2] = {};
        if (begin) load_sums<ROWS>(sums, y, y_stride);
        for (size_t k = begin; k < end; k++, w += PANEL) {
            ahead.ask();
            add_products<ROWS, 1>(sums, x, k, w, 0);
        }
        store_sums<ROWS, 1>(sums, y, y_stride);
    }

  private:
    /// Those of input k. Weights of a panel stay in registers while the rows pass by.
    template <int ROWS, int PANELS>
    static INLINE void add_products(Floats (&sums)[ROWS][2 * PANELS], const Rows& x, size_t k,
                                    const float* w, size_t panel_size) {
#pragma GCC unroll 4
        for (int p = 0; p < PANELS; p++, w += panel_size) {
            const Floats left = load<Floats>(w), right = load<Floats>(w + LANES);
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; r++) {
                const Floats value = all(x.floats[r * x.inputs + k]);
                sums[r][2 * p] = fma(value, left, sums[r][2 * p]);
                sums[r][2 * p + 1] = fma(value, right, sums[r][2 * p + 1]);
            }
        }
    }
};

struct BFloat16 {
    static constexpr int MAX_ROWS = Float32::MAX_ROWS;
    static constexpr int FEW_ROWS = WIDE ? 12 : 4;
    static constexpr int PACKED_ROWS = WIDE ? 12 : 8;
    static constexpr size_t BLOCK = BFLOAT16_PRODUCTS ? 256 : Float32::BLOCK;
    static constexpr size_t INPUTS_PER_ASK = BFLOAT16_PRODUCTS ? 2 : Float32::INPUTS_PER_ASK;
    static constexpr size_t UNPACKED_BYTES = BFLOAT16_PRODUCTS ? 0 : BLOCK * PANEL * sizeof(float);
    static size_t panel_bytes(size_t inputs) { return inputs * PANEL * sizeof(uint16_t); }

    // pairs of inputs side by side, as the instruction wants them; where there is none, a shift and
    // a mask make float32 of a whole vector
    static void pack(const Source& source, size_t first, size_t inputs, char* panel, float*) {
        uint16_t* to = reinterpret_cast<uint16_t*>(panel);
        for (size_t k = 0; k < inputs; k += 2)
            for (int j = 0; j < PANEL; j++)
                for (int i = 0; i < 2; i++) *to++ = to_bfloat16(source(first + j, k + i));
    }

    template <int ROWS, int PANELS>
    static INLINE void multiply(const Rows& x, const char* panels, const float*, float* y,
                                size_t y_stride) {
        Floats sums[ROWS][2 * PANELS] = {};
        for (size_t k = 0; k < x.inputs; k += 2)
            add_products<ROWS, PANELS>(sums, x, k, panels + panel_bytes(k), panel_bytes(x.inputs));
        store_sums<ROWS, PANELS>(sums, y, y_stride);
    }

#if BFLOAT16_PRODUCTS
    static const void* unpack(const char* panel, size_t begin, size_t, void*) {
        return panel + panel_bytes(begin);
    }

    template <int ROWS>
    static INLINE void multiply_block(const Rows& x, const void* block, const float*, size_t begin,
                                      size_t end, Ahead ahead, float* y, size_t y_stride) {
        const char* from = static_cast<const char*>(block);
        Floats sums[ROWS][2] = {};
        if (begin) load_sums<ROWS>(sums, y, y_stride);
        for (size_t k = begin; k < end; k += 2, from += panel_bytes(2)) {
            ahead.ask();
            add_products<ROWS, 1>(sums, x, k, from, 0);
        }
        store_sums<ROWS, 1>(sums, y, y_stride);
    }
#else
    /// float32, as Float32 packs it.
    static const void* unpack(const char* panel, size_t begin, size_t end, void* block) {
        float* to = static_cast<float*>(block);
        for (size_t k = begin; k < end; k += 2, to += 2 * PANEL)
            for (int v = 0; v < 2; v++) {
                const Ints pairs = load<Ints>(panel + panel_bytes(k) + v * sizeof(Ints));
                store(to + v * LANES, even_of(pairs));
                store(to + PANEL + v * LANES, odd_of(pairs));
            }
        return block;
    }

    template <int ROWS>
    static INLINE void multiply_block(const Rows& x, const void* block, const float* scales,
                                      size_t begin, size_t end, Ahead ahead, float* y,
                                      size_t y_stride) {
        Float32::multiply_block<ROWS>(x, block, scales, begin, end, ahead, y, y_stride);
    }
#endif

  private:
    /// Those of inputs k and k + 1, with the pairs of each panel.
    template <int ROWS, int PANELS>
    static INLINE void add_products(Floats (&sums)[ROWS][2 * PANELS], const Rows& x, size_t k,
                                    const char* from, size_t panel_size) {
#pragma GCC unroll 4
        for (int p = 0; p < PANELS; p++, from += panel_size) {
            const Ints left = load<Ints>(from), right = load<Ints>(from + sizeof(Ints));
#pragma GCC unroll 12
            for (int r = 0; r < ROWS; r++) {
                const size_t at = r * x.inputs + k;
                sums[r][2 * p] = add_pair(sums[r][2 * p], left, x, at);
                sums[r][2 * p + 1] = add_pair(sums[r][2 * p + 1], right, x, at);
            }
        }
    }

#if BFLOAT16_PRODUCTS
    static INLINE Floats add_pair(Floats sum, Ints pairs, const Rows& x, size_t at) {
        int32_t values;
        std::memcpy(&values, x.halves + at, sizeof values);
        return add_pair_products(sum, pairs, all_ints(values));
    }
#else
    static INLINE Floats add_pair(Floats sum, Ints pairs, const Rows& x, size_t at) {
        sum = fma(all(x.floats[at]), even_of(pairs), sum);
        return fma(all(x.floats[at + 1]), odd_of(pairs), sum);
    }
#endif

    static INLINE Floats even_of(Ints pairs) { return bits<Floats>(pairs << 16); }
    static INLINE Floats odd_of(Ints pairs) {
        return bits<Floats>(pairs & static_cast<int32_t>(0xffff0000));
    }
};

/// The scale of an output's weights as -127 to 127.
inline float int8_scale(const Source& source, size_t output, size_t inputs) {
    float most = 0;
    for (size_t k = 0; k < inputs; k++) most = std::max(most, std::fabs(source(output, k)));
    return most / 127;
}

inline int32_t int8_of(float weight, float scale) {
    return scale > 0 ? static_cast<int32_t>(std::lrintf(weight / scale)) : 0;
}

/// The largest rounded activation whose products with K weights still add up below 2^31.
inline float largest_short(size_t inputs) {
    return static_cast<float>(std::min<size_t>(32767, 2147483647 / (127 * inputs)));
}

#if QUAD_PRODUCTS
struct Int8 {
    static constexpr int MAX_ROWS = 4;
    static constexpr int FEW_ROWS = 8;
    static constexpr int PACKED_ROWS = 8;
    static constexpr size_t BLOCK = 512;
    static constexpr size_t INPUTS_PER_ASK = 8;
    static constexpr size_t UNPACKED_BYTES = 0;
    static size_t panel_bytes(size_t inputs) { return inputs * PANEL; }

    static void pack(const Source& source, size_t first, size_t inputs, char* panel,
                     float* scales) {
        uint8_t* to = reinterpret_cast<uint8_t*>(panel);
        for (int j = 0; j < PANEL; j++) scales[first + j] = int8_scale(source, first + j, inputs);
        for (size_t k = 0; k < inputs; k += 4)
            for (int j = 0; j < PANEL; j++)
                for (int i = 0; i < 4; i++)
                    *to++ = static_cast<uint8_t>(
                        int8_of(source(first + j, k + i), scales[first + j]) + INT8_ZERO);
    }

    template <int ROWS, int PANELS>
    static INLINE void multiply(const Rows& x, const char* panels, const float* scales, float* y,
                                size_t y_stride) {
        Floats sums[ROWS][2 * PANELS] = {};
        for (size_t group = 0; group < x.inputs / GROUP; group++)
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; p++) {
                const char* from = panels + p * panel_bytes(x.inputs) + panel_bytes(group * GROUP);
                add_group(
                    sums, 2 * p, x, group,
                    [&](int i) { return Octet::at(from + panel_bytes(8 * i)); }, unscaled);
            }
        scale<ROWS, PANELS>(sums, scales);
        store_sums<ROWS, PANELS>(sums, y, y_stride);
    }

    static const void* unpack(const char* panel, size_t begin, size_t, void*) {
        return panel + panel_bytes(begin);
    }

    template <int ROWS>
    static INLINE void multiply_block(const Rows& x, const void* block, const float* scales,
                                      size_t begin, size_t end, Ahead ahead, float* y,
                                      size_t y_stride) {
        const char* from = static_cast<const char*>(block);
        Floats sums[ROWS][2] = {};
        if (begin) load_sums<ROWS>(sums, y, y_stride);
        for (size_t group = begin / GROUP; group < end / GROUP; group++, from += panel_bytes(GROUP))
            add_group(
                sums, 0, x, group,
                [&](int i) {
                    ahead.ask();
                    return Octet::at(from + panel_bytes(8 * i));
                },
                unscaled);
        if (end == x.inputs) scale<ROWS, 1>(sums, scales);
        store_sums<ROWS, 1>(sums, y, y_stride);
    }

  private:
    /// Weights of an output share a scale: it waits until all are multiplied.
    static INLINE Floats unscaled(Floats activations, int) { return activations; }

    template <int ROWS, int PANELS>
    static INLINE void scale(Floats (&sums)[ROWS][2 * PANELS], const float* scales) {
        for (int v = 0; v < 2 * PANELS; v++) {
            const Floats weights = load<Floats>(scales + v * LANES);
            for (int r = 0; r < ROWS; r++) sums[r][v] *= weights;
        }
    }
};
#else
struct Int8 {
    static constexpr int MAX_ROWS = WIDE ? 12 : 6;
    static constexpr int FEW_ROWS = MAX_ROWS;
    static constexpr int PACKED_ROWS = MAX_ROWS;
    static constexpr size_t BLOCK = 512;
    static constexpr size_t INPUTS_PER_ASK = 2;
    static constexpr size_t UNPACKED_BYTES = BLOCK * PANEL * sizeof(int16_t);
    static size_t panel_bytes(size_t inputs) { return inputs * PANEL; }

    static void pack(const Source& source, size_t first, size_t inputs, char* panel,
                     float* scales) {
        int8_t* to = reinterpret_cast<int8_t*>(panel);
        for (int j = 0; j < PANEL; j++) scales[first + j] = int8_scale(source, first + j, inputs);
        for (size_t k = 0; k < inputs; k += 2)
            for (int j = 0; j < PANEL; j++)
                for (int i = 0; i < 2; i++)
                    *to++ = static_cast<int8_t>(
                        int8_of(source(first + j, k + i), scales[first + j]));
    }

    template <int ROWS, int PANELS>
    static INLINE void multiply(const Rows& x, const char* panels, const float* scales, float* y,
                                size_t y_stride) {
        Ints sums[ROWS][2 * PANELS] = {};
        for (size_t k = 0; k < x.inputs; k += 2)
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; p++) {
                const char* from = panels + p * panel_bytes(x.inputs) + panel_bytes(k);
                const Shorts left = widen(from), right = widen(from + 2 * LANES);
                add_products<ROWS, PANELS>(sums, x, k, p, left, right);
            }
        scale<ROWS, PANELS>(sums, x, scales, y, y_stride);
    }

    /// 16 bits each, in the same order.
    static const void* unpack(const char* panel, size_t begin, size_t end, void* block) {
        int16_t* to = static_cast<int16_t*>(block);
        for (size_t at = panel_bytes(begin); at < panel_bytes(end); at += 2 * LANES)
            store(to + at - panel_bytes(begin), widen(panel + at));
        return block;
    }

    /// Whole numbers, unscaled, until the last block.
    template <int ROWS>
    static INLINE void multiply_block(const Rows& x, const void* block, const float* scales,
                                      size_t begin, size_t end, Ahead ahead, float* y,
                                      size_t y_stride) {
        const int16_t* w = static_cast<const int16_t*>(block);
        Ints sums[ROWS][2] = {};
        if (begin)
            for (int r = 0; r < ROWS; r++)
                for (int v = 0; v < 2; v++) sums[r][v] = load<Ints>(y + r * y_stride + v * LANES);
        for (size_t k = begin; k < end; k += 2, w += 2 * PANEL) {
            ahead.ask();
            add_products<ROWS, 1>(sums, x, k, 0, load<Shorts>(w), load<Shorts>(w + 2 * LANES));
        }
        if (end == x.inputs) return scale<ROWS, 1>(sums, x, scales, y, y_stride);
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < 2; v++) store(y + r * y_stride + v * LANES, sums[r][v]);
    }

  private:
    static INLINE Shorts widen(const char* from) {
        return __builtin_convertvector(load<HalfBytes>(from), Shorts);
    }

    /// Those of inputs k and k + 1, with the two halves of panel p.
    template <int ROWS, int PANELS>
    static INLINE void add_products(Ints (&sums)[ROWS][2 * PANELS], const Rows& x, size_t k, int p,
                                    Shorts left, Shorts right) {
#pragma GCC unroll 12
        for (int r = 0; r < ROWS; r++) {
            int32_t pair;
            std::memcpy(&pair, x.shorts + r * x.inputs + k, sizeof pair);
            const Ints values = all_ints(pair);
            sums[r][2 * p] = add_pair_products(sums[r][2 * p], left, values);
            sums[r][2 * p + 1] = add_pair_products(sums[r][2 * p + 1], right, values);
        }
    }

    template <int ROWS, int PANELS>
    static INLINE void scale(const Ints (&sums)[ROWS][2 * PANELS], const Rows& x,
                             const float* scales, float* y, size_t y_stride) {
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < 2 * PANELS; v++)
                store(y + r * y_stride + v * LANES,
                      to_floats(sums[r][v]) * (all(x.scales[r]) * load<Floats>(scales + v * LANES)));
    }
};
#endif

struct Int4 {
    static constexpr int MAX_ROWS = WIDE ? 8 : 4;
    static constexpr int FEW_ROWS = MAX_ROWS;
    static constexpr int PACKED_ROWS = MAX_ROWS;
    static constexpr size_t BLOCK = 768;
    static constexpr size_t INPUTS_PER_ASK = 8;
    static constexpr size_t SCALES_BYTES = PANEL * sizeof(uint16_t);
    static constexpr size_t GROUP_BYTES = SCALES_BYTES + PANEL * GROUP / 2;
    static constexpr size_t UNPACKED_GROUP_BYTES = PANEL * sizeof(float) + PANEL * GROUP;
    static constexpr size_t UNPACKED_BYTES = BLOCK / GROUP * UNPACKED_GROUP_BYTES;
    static size_t panel_bytes(size_t inputs) { return inputs / GROUP * GROUP_BYTES; }

    /// Of a group: PANEL scales in bfloat16, then for each half of the panel four vectors of
    /// bytes. Lane i of vector q has inputs 8q to 8q + 3 of output i in the low halves of its
    /// bytes, and 8q + 4 to 8q + 7 in the high ones. The halves of a panel alternate.
    static void pack(const Source& source, size_t first, size_t inputs, char* panel, float*) {
        for (size_t k = 0; k < inputs; k += GROUP, panel += GROUP_BYTES) {
            uint8_t whole[PANEL][GROUP];
            for (int j = 0; j < PANEL; j++) {
                float group[GROUP];
                for (int i = 0; i < GROUP; i++) group[i] = source(first + j, k + i);
                const uint16_t scale = quantize(group, whole[j]);
                std::memcpy(panel + j * sizeof scale, &scale, sizeof scale);
            }
            uint8_t* to = reinterpret_cast<uint8_t*>(panel + SCALES_BYTES);
            for (int quad = 0; quad < GROUP / 8; quad++)
                for (int j = 0; j < PANEL; j++)
                    for (int i = 0; i < 4; i++) {
                        const uint8_t* from = whole[j] + 8 * quad + i;
                        *to++ = static_cast<uint8_t>(from[0] | from[4] << 4);
                    }
        }
    }

    /// Weights of one group as 0..15, and their scale in bfloat16: of the scales around largest / 8
    /// the one with the smallest squared error. The largest weight has the sign that -8 has.
    static uint16_t quantize(const float* group, uint8_t* whole) {
        float most = 0;
        for (int i = 0; i < GROUP; i++)
            if (std::fabs(group[i]) > std::fabs(most)) most = group[i];
        uint16_t best = 0;
        float least = INFINITY;
        std::fill(whole, whole + GROUP, INT4_ZERO);
        for (int step = -4; step <= 4 && most != 0; step++) {
            const uint16_t half = to_bfloat16(most / (-8.0f + 0.25f * static_cast<float>(step)));
            const float scale = from_bfloat16(half);
            uint8_t rounded[GROUP];
            float error = 0;
            for (int i = 0; i < GROUP; i++) {
                const float q = std::clamp(std::nearbyintf(group[i] / scale), -8.0f, 7.0f);
                rounded[i] = static_cast<uint8_t>(static_cast<int>(q) + INT4_ZERO);
                error += (q * scale - group[i]) * (q * scale - group[i]);
            }
            if (error < least) {
                least = error, best = half;
                std::copy(rounded, rounded + GROUP, whole);
            }
        }
        return best;
    }

    template <int ROWS, int PANELS>
    static INLINE void multiply(const Rows& x, const char* panels, const float*, float* y,
                                size_t y_stride) {
        Floats sums[ROWS][2 * PANELS] = {};
        for (size_t group = 0; group < x.inputs / GROUP; group++)
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; p++) {
                const char* from = panels + p * panel_bytes(x.inputs) + group * GROUP_BYTES;
                const uint16_t* scales = reinterpret_cast<const uint16_t*>(from);
                add_group(
                    sums, 2 * p, x, group,
                    [&](int i) { return octet_at(from + SCALES_BYTES + i * 2 * sizeof(Ints)); },
                    [&](Floats scale, int half) {
                        return scale * load_floats(scales + half * LANES);
                    });
            }
        store_sums<ROWS, PANELS>(sums, y, y_stride);
    }

    /// Of a group: PANEL scales in float32, then two vectors of 0..15 for each four inputs.
    static const void* unpack(const char* panel, size_t begin, size_t end, void* block) {
        char* to = static_cast<char*>(block);
        for (size_t group = begin / GROUP; group < end / GROUP; group++) {
            const char* from = panel + group * GROUP_BYTES;
            for (int half = 0; half < 2; half++, to += sizeof(Floats))
                store(to, load_floats(reinterpret_cast<const uint16_t*>(from) + half * LANES));
            from += SCALES_BYTES;
            for (int i = 0; i < GROUP / 8; i++, from += 2 * sizeof(Ints), to += sizeof(Octet))
                store(to, octet_at(from));
        }
        return block;
    }

    template <int ROWS>
    static INLINE void multiply_block(const Rows& x, const void* block, const float*, size_t begin,
                                      size_t end, Ahead ahead, float* y, size_t y_stride) {
        const char* from = static_cast<const char*>(block);
        Floats sums[ROWS][2] = {};
        if (begin) load_sums<ROWS>(sums, y, y_stride);
        for (size_t group = begin / GROUP; group < end / GROUP;
             group++, from += UNPACKED_GROUP_BYTES)
            add_group(
                sums, 0, x, group,
                [&](int i) {
                    ahead.ask();
                    return Octet::at(from + PANEL * sizeof(float) + i * sizeof(Octet));
                },
                [&](Floats scale, int half) {
                    return scale * load<Floats>(from + half * sizeof(Floats));
                });
        store_sums<ROWS, 1>(sums, y, y_stride);
    }

  private:
    /// The weights in two vectors of packed ones.
    static INLINE Octet octet_at(const char* from) {
        const Ints left = load<Ints>(from), right = load<Ints>(from + sizeof(Ints));
        return {{low_of(left), low_of(right)}, {high_of(left), high_of(right)}};
    }

    static INLINE Bytes low_of(Ints packed) { return bits<Bytes>(packed & 0x0f0f0f0f); }
    static INLINE Bytes high_of(Ints packed) { return bits<Bytes>(packed >> 4 & 0x0f0f0f0f); }
};
