// How weights are held, and the innermost loops over them: one struct for each precision.
//
// A matrix of N outputs and K inputs is packed into panels of PANEL outputs, each read from front
// to end. `multiply<ROWS, PANELS>` computes ROWS rows of activations times PANELS panels. Whatever
// ROWS and PANELS are, the sum of one output runs over K in the same order, so a row's result has
// the same bits alone and in company.
//
// float32, bfloat16   products are added in float32, in the order of K
// int8                one scale for each output; activations are rounded to 16 bits with one scale
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

/// What all rows of activations, and all inputs of a matrix, are padded to with zeros.
inline size_t padded(size_t count, size_t multiple = GROUP) {
    return (count + multiple - 1) / multiple * multiple;
}

/// Rows of activations as the kernels of one precision read them; `inputs` is their stride.
struct Rows {
    size_t inputs = 0;
    const float* floats = nullptr;    // (rows, inputs)
    const int16_t* shorts = nullptr;  // (rows, inputs)
    const int8_t* bytes = nullptr;    // (rows, inputs)
    const float* scales = nullptr;    // int8: (rows,); int4: (rows, inputs / GROUP)
    const int32_t* offsets = nullptr; // int4: 8 times the sum of a group, as `scales`

    Rows from(size_t row) const {
        Rows rest = *this;
        const size_t groups = inputs / GROUP;
        rest.floats += row * inputs;
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

struct Float32 {
    static constexpr int MAX_ROWS = WIDE ? 12 : 6;  // as many sums as there are registers for
    static constexpr size_t BLOCK = 1024;           // inputs at a time; their panels stay in cache
    static size_t panel_bytes(size_t inputs) { return inputs * PANEL * sizeof(float); }

    static void pack(const Source& source, size_t first, size_t inputs, char* panel, float*) {
        float* to = reinterpret_cast<float*>(panel);
        for (size_t k = 0; k < inputs; k++)
            for (int j = 0; j < PANEL; j++) *to++ = source(first + j, k);
    }

    template <int ROWS, int PANELS>
    static INLINE void multiply(const Rows& x, const char* panels, const float*, size_t begin,
                                size_t end, float* y, size_t y_stride) {
        const size_t panel_size = x.inputs * PANEL;
        const float* w = reinterpret_cast<const float*>(panels);
        Floats sums[ROWS][2 * PANELS];
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < 2 * PANELS; v++)
                sums[r][v] = begin ? load<Floats>(y + r * y_stride + v * LANES) : Floats{};
#pragma GCC unroll 2
        for (size_t k = begin; k < end; k++)
#pragma GCC unroll 8
            for (int v = 0; v < 2 * PANELS; v++) {
                const Floats weights =
                    load<Floats>(w + (v / 2) * panel_size + k * PANEL + (v % 2) * LANES);
#pragma GCC unroll 12
                for (int r = 0; r < ROWS; r++)
                    sums[r][v] = fma(all(x.floats[r * x.inputs + k]), weights, sums[r][v]);
            }
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < 2 * PANELS; v++)
                store(y + r * y_stride + v * LANES, sums[r][v]);
    }
};

struct BFloat16 {
    static constexpr int MAX_ROWS = WIDE ? 12 : 6;
    static constexpr size_t BLOCK = 1024;
    static size_t panel_bytes(size_t inputs) { return inputs * PANEL * sizeof(uint16_t); }

    // pairs of inputs side by side: a shift and a mask then make float32 of a whole vector
    static void pack(const Source& source, size_t first, size_t inputs, char* panel, float*) {
        uint16_t* to = reinterpret_cast<uint16_t*>(panel);
        for (size_t k = 0; k < inputs; k += 2)
            for (int j = 0; j < PANEL; j++)
                for (int i = 0; i < 2; i++) *to++ = to_bfloat16(source(first + j, k + i));
    }

    template <int ROWS, int PANELS>
    static INLINE void multiply(const Rows& x, const char* panels, const float*, size_t begin,
                                size_t end, float* y, size_t y_stride) {
        const size_t panel_size = x.inputs * PANEL;
        const uint16_t* w = reinterpret_cast<const uint16_t*>(panels);
        Floats sums[ROWS][2 * PANELS];
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < 2 * PANELS; v++)
                sums[r][v] = begin ? load<Floats>(y + r * y_stride + v * LANES) : Floats{};
        for (size_t k = begin; k < end; k += 2)
#pragma GCC unroll 8
            for (int v = 0; v < 2 * PANELS; v++) {
                const Ints pairs =
                    load<Ints>(w + (v / 2) * panel_size + k * PANEL + (v % 2) * 2 * LANES);
                const Floats even = bits<Floats>(pairs << 16);
                const Floats odd = bits<Floats>(pairs & static_cast<int32_t>(0xffff0000));
#pragma GCC unroll 12
                for (int r = 0; r < ROWS; r++) {
                    const float* row = x.floats + r * x.inputs + k;
                    sums[r][v] = fma(all(row[0]), even, sums[r][v]);
                    sums[r][v] = fma(all(row[1]), odd, sums[r][v]);
                }
            }
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < 2 * PANELS; v++)
                store(y + r * y_stride + v * LANES, sums[r][v]);
    }
};

struct Int8 {
    static constexpr int MAX_ROWS = WIDE ? 12 : 6;
    static constexpr size_t BLOCK = SIZE_MAX;  // sums of whole numbers are finished at once
    static size_t panel_bytes(size_t inputs) { return inputs * PANEL; }

    static void pack(const Source& source, size_t first, size_t inputs, char* panel,
                     float* scales) {
        int8_t* to = reinterpret_cast<int8_t*>(panel);
        for (int j = 0; j < PANEL; j++) {
            float most = 0;
            for (size_t k = 0; k < inputs; k++)
                most = std::max(most, std::fabs(source(first + j, k)));
            scales[first + j] = most / 127;
        }
        for (size_t k = 0; k < inputs; k += 2)
            for (int j = 0; j < PANEL; j++)
                for (int i = 0; i < 2; i++) {
                    const float scale = scales[first + j];
                    const float value = source(first + j, k + i);
                    *to++ = static_cast<int8_t>(scale > 0 ? std::lrintf(value / scale) : 0);
                }
    }

    /// The largest activation whose products with K weights still add up below 2^31.
    static float largest_activation(size_t inputs) {
        return static_cast<float>(std::min<size_t>(32767, 2147483647 / (127 * inputs)));
    }

    template <int ROWS, int PANELS>
    static INLINE void multiply(const Rows& x, const char* panels, const float* scales,
                                size_t begin, size_t end, float* y, size_t y_stride) {
        const size_t panel_size = x.inputs * PANEL;
        Ints sums[ROWS][2 * PANELS] = {};
        for (size_t k = begin; k < end; k += 2)
#pragma GCC unroll 8
            for (int v = 0; v < 2 * PANELS; v++) {
                const Shorts weights = __builtin_convertvector(
                    load<HalfBytes>(panels + (v / 2) * panel_size + k * PANEL + (v % 2) * 2 * LANES),
                    Shorts);
#pragma GCC unroll 12
                for (int r = 0; r < ROWS; r++) {
                    int32_t pair;
                    std::memcpy(&pair, x.shorts + r * x.inputs + k, sizeof pair);
                    sums[r][v] = add_pair_products(sums[r][v], weights, all_ints(pair));
                }
            }
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < 2 * PANELS; v++)
                store(y + r * y_stride + v * LANES,
                      to_floats(sums[r][v]) * (all(x.scales[r]) * load<Floats>(scales + v * LANES)));
    }
};

struct Int4 {
    static constexpr int MAX_ROWS = WIDE ? 8 : 4;
    static constexpr size_t BLOCK = SIZE_MAX;
    static constexpr int ZERO = 8;  // weights are stored as 0..15 and mean -8..7
    static constexpr size_t SCALES_BYTES = PANEL * sizeof(uint16_t);
    static constexpr size_t GROUP_BYTES = SCALES_BYTES + PANEL * GROUP / 2;
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
        std::fill(whole, whole + GROUP, ZERO);
        for (int step = -4; step <= 4 && most != 0; step++) {
            const uint16_t half = to_bfloat16(most / (-8.0f + 0.25f * static_cast<float>(step)));
            const float scale = from_bfloat16(half);
            uint8_t rounded[GROUP];
            float error = 0;
            for (int i = 0; i < GROUP; i++) {
                const float q = std::clamp(std::nearbyintf(group[i] / scale), -8.0f, 7.0f);
                rounded[i] = static_cast<uint8_t>(static_cast<int>(q) + ZERO);
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
    static INLINE void multiply(const Rows& x, const char* panels, const float*, size_t begin,
                                size_t end, float* y, size_t y_stride) {
        const size_t panel_size = panel_bytes(x.inputs), groups = x.inputs / GROUP;
        Floats sums[ROWS][2 * PANELS] = {};
        for (size_t group = begin / GROUP; group < end / GROUP; group++)
#pragma GCC unroll 4
            for (int p = 0; p < PANELS; p++) {
                const char* from = panels + p * panel_size + group * GROUP_BYTES;
                QuadSums quads[ROWS][2];
#pragma GCC unroll 4
                for (int quad = 0; quad < GROUP / 8; quad++)
#pragma GCC unroll 2
                    for (int half = 0; half < 2; half++) {
                        const Ints packed = load<Ints>(from + SCALES_BYTES +
                                                       (2 * quad + half) * sizeof(Ints));
                        const Bytes low = bits<Bytes>(packed & 0x0f0f0f0f);
                        const Bytes high = bits<Bytes>(packed >> 4 & 0x0f0f0f0f);
#pragma GCC unroll 8
                        for (int r = 0; r < ROWS; r++) {
                            int32_t activations[2];
                            std::memcpy(activations,
                                        x.bytes + r * x.inputs + group * GROUP + 8 * quad,
                                        sizeof activations);
                            quads[r][half].add(low, all_ints(activations[0]));
                            quads[r][half].add(high, all_ints(activations[1]));
                        }
                    }
#pragma GCC unroll 2
                for (int half = 0; half < 2; half++) {
                    const Floats scales = load_floats(
                        reinterpret_cast<const uint16_t*>(from) + half * LANES);
#pragma GCC unroll 8
                    for (int r = 0; r < ROWS; r++) {
                        const Ints whole = quads[r][half].total() -
                                           all_ints(x.offsets[r * groups + group]);
                        Floats& sum = sums[r][2 * p + half];
                        sum = fma(to_floats(whole), scales * all(x.scales[r * groups + group]), sum);
                    }
                }
            }
        for (int r = 0; r < ROWS; r++)
            for (int v = 0; v < 2 * PANELS; v++)
                store(y + r * y_stride + v * LANES, sums[r][v]);
    }
};
