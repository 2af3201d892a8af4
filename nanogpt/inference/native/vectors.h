// Vectors of numbers, and the few functions on them that differ between processors.
//
// Everything is written for LANES numbers at a time, with the vector types of GCC and Clang; only
// where a processor has one instruction for several operations is it named. Products are added
// with `fma` alone (the flag -ffp-contract=off forbids the compiler to do so by itself), so that a
// sum has the same bits in every function that computes it in the same order.

#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

#if defined(__AVX512F__) && defined(__AVX512BW__)
#define WIDE 1
constexpr int LANES = 16;
#else
#define WIDE 0
constexpr int LANES = 8;
#endif

/// Whether one instruction multiplies pairs of bfloat16 and adds them to float32.
#if WIDE && defined(__AVX512BF16__)
#define BFLOAT16_PRODUCTS 1
#else
#define BFLOAT16_PRODUCTS 0
#endif

/// Whether one instruction multiplies four pairs of bytes and adds them to a whole number.
#if WIDE && defined(__AVX512VNNI__)
#define QUAD_PRODUCTS 1
#else
#define QUAD_PRODUCTS 0
#endif

typedef float Floats __attribute__((vector_size(LANES * 4)));
typedef int32_t Ints __attribute__((vector_size(LANES * 4)));
typedef int16_t Shorts __attribute__((vector_size(LANES * 4)));
typedef uint8_t Bytes __attribute__((vector_size(LANES * 4)));
typedef int16_t HalfShorts __attribute__((vector_size(LANES * 2)));
typedef uint16_t HalfWords __attribute__((vector_size(LANES * 2)));
typedef int8_t HalfBytes __attribute__((vector_size(LANES * 2)));
typedef int8_t QuarterBytes __attribute__((vector_size(LANES)));

#define INLINE inline __attribute__((always_inline))

template <class V> INLINE V load(const void* from) {
    V v;
    std::memcpy(&v, from, sizeof v);
    return v;
}

template <class V> INLINE void store(void* to, V v) { std::memcpy(to, &v, sizeof v); }

INLINE Floats all(float value) {
    return value - Floats{};  // not +: that would make 0 of -0
}

INLINE Ints all_ints(int32_t value) { return value - Ints{}; }

template <class To, class From> INLINE To bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    return load<To>(&from);
}

INLINE Floats to_floats(Ints v) { return __builtin_convertvector(v, Floats); }

INLINE Ints to_ints(Floats v) { return __builtin_convertvector(v, Ints); }  // towards 0

/// a * b + c, rounded once where the processor can.
INLINE Floats fma(Floats a, Floats b, Floats c) {
#if WIDE
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__ARM_NEON) && defined(__aarch64__)
    float32x4_t r[2], x[2], y[2];
    std::memcpy(x, &a, sizeof a), std::memcpy(y, &b, sizeof b), std::memcpy(r, &c, sizeof c);
    r[0] = vfmaq_f32(r[0], x[0], y[0]), r[1] = vfmaq_f32(r[1], x[1], y[1]);
    return load<Floats>(r);
#else
    return a * b + c;
#endif
}

// of NaN and a number, these return the second argument
INLINE Floats smaller(Floats a, Floats b) { return a < b ? a : b; }
INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }
INLINE Floats magnitude(Floats v) { return bits<Floats>(bits<Ints>(v) & 0x7fffffff); }

/// The nearest whole numbers, ties to even, of numbers below 2^22: beyond it a float32 has no
/// fraction left, so adding and subtracting a number there rounds.
INLINE Floats nearest(Floats v) {
    const Floats shift = all(12582912.0f);  // 1.5 * 2^23
    return (v + shift) - shift;
}

/// Sum of all lanes, always in the same order.
INLINE float sum(Floats v) {
    float lanes[LANES];
    store(lanes, v);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) lanes[i] += lanes[i + half];
    return lanes[0];
}

INLINE float largest(Floats v) {
    float result = v[0];
    for (int i = 1; i < LANES; i++) result = v[i] > result ? v[i] : result;
    return result;
}

/// LANES numbers 0, 1, 2, ...
INLINE Ints lane_numbers() {
    Ints v;
    for (int i = 0; i < LANES; i++) v[i] = i;
    return v;
}

/// exp, to about 1e-7 relative; 0 below -87.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2, where eight terms of the Taylor series leave 5e-9.
INLINE Floats exponential(Floats x) {
    const Floats clamped = smaller(all(88.0f), larger(all(-87.0f), x));  // NaN stays
    const Floats n = nearest(clamped * all(1.44269504f));  // log2 e
    // ln 2 in two parts, of which the first has few enough bits for n times it to be exact
    Floats r = fma(n, all(-0.693359375f), clamped);
    r = fma(n, all(2.12194440e-4f), r);
    Floats p = all(1.0f / 5040);
    p = fma(p, r, all(1.0f / 720));
    p = fma(p, r, all(1.0f / 120));
    p = fma(p, r, all(1.0f / 24));
    p = fma(p, r, all(1.0f / 6));
    p = fma(p, r, all(0.5f));
    p = fma(p, r, all(1.0f));
    p = fma(p, r, all(1.0f));
    const Floats power = bits<Floats>((to_ints(n) + 127) << 23);  // 2^n
    return x < all(-87.0f) ? Floats{} : p * power;
}

/// x times the normal distribution function of x, the exact GELU, to about 2e-7 of x.
///
/// The complementary error function is formula 7.1.26 of Abramowitz and Stegun, off by at most
/// 1.5e-7: https://personal.math.ubc.ca/~cbm/aands/page_299.htm
INLINE Floats gelu(Floats x) {
    const Floats z = magnitude(x) * all(0.70710678f);  // 1 / sqrt 2
    const Floats t = all(1.0f) / fma(z, all(0.3275911f), all(1.0f));
    Floats p = all(1.061405429f);
    p = fma(p, t, all(-1.453152027f));
    p = fma(p, t, all(1.421413741f));
    p = fma(p, t, all(-0.284496736f));
    p = fma(p, t, all(0.254829592f));
    const Floats tail = all(0.5f) * p * t * exponential(-z * z);
    return x * (x < Floats{} ? tail : all(1.0f) - tail);
}

/// The square of what is above 0; NaN stays NaN.
INLINE Floats squared_relu(Floats x) {
    const Floats above = larger(Floats{}, x);
    return above * above;
}

/// 15 tanh(x / 15), the soft cap of modern logits, to about 2e-6.
INLINE Floats soft_capped(Floats x) {
    const Floats grown = exponential(x * all(2.0f / 15));
    return all(15.0f) - all(30.0f) / (grown + all(1.0f));
}

/// The nearest bfloat16, ties to even; NaN stays NaN.
inline uint16_t to_bfloat16(float value) {
    uint32_t word;
    std::memcpy(&word, &value, 4);
    if (value != value) return static_cast<uint16_t>(word >> 16 | 0x40);
    return static_cast<uint16_t>((word + 0x7fff + (word >> 16 & 1)) >> 16);
}

inline float from_bfloat16(uint16_t half) {
    const uint32_t word = static_cast<uint32_t>(half) << 16;
    float value;
    std::memcpy(&value, &word, 4);
    return value;
}

/// As `to_bfloat16`, of LANES numbers; where one instruction does it, numbers below 1e-38 become 0.
INLINE HalfWords to_bfloat16s(Floats values) {
#if BFLOAT16_PRODUCTS
    return (HalfWords)_mm512_cvtneps_pbh((__m512)values);
#endif
    const Ints words = bits<Ints>(values);
    const Ints rounded = values == values ? words + 0x7fff + (words >> 16 & 1) : words | 0x400000;
    return __builtin_convertvector(rounded >> 16, HalfWords);
}

INLINE Floats load_floats(const float* from) { return load<Floats>(from); }

INLINE Floats load_floats(const uint16_t* from) {  // bfloat16
#if WIDE  // GCC takes three instructions
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(load<__m256i>(from)), 16);
#endif
    return bits<Floats>(__builtin_convertvector(load<HalfWords>(from), Ints) << 16);
}

#if BFLOAT16_PRODUCTS
/// sums + w[2i] x[0] + w[2i + 1] x[1] in lane i: bfloat16, each product added and rounded by itself.
INLINE Floats add_pair_products(Floats sums, Ints w, Ints x) {
    return (Floats)_mm512_dpbf16_ps((__m512)sums, (__m512bh)w, (__m512bh)x);
}
#endif

/// sums + w[2i] x[0] + w[2i + 1] x[1] in lane i: whole numbers, exact below 2^31.
INLINE Ints add_pair_products(Ints sums, Shorts w, Ints x) {
#if QUAD_PRODUCTS
    return (Ints)_mm512_dpwssd_epi32((__m512i)sums, (__m512i)w, (__m512i)x);
#elif WIDE
    return sums + (Ints)_mm512_madd_epi16((__m512i)w, (__m512i)x);
#elif defined(__AVX2__)
    return sums + (Ints)_mm256_madd_epi16((__m256i)w, (__m256i)x);
#else
    const Ints pairs = bits<Ints>(w);
    return sums + ((pairs << 16) >> 16) * ((x << 16) >> 16) + (pairs >> 16) * (x >> 16);
#endif
}

/// A number plus products of four unsigned bytes and four signed ones in each lane. Without an
/// instruction for it, the unsigned ones are below 16 and there are at most eight such products a
/// lane: more could overflow the 16 bits that AVX2 adds in.
struct QuadSums {
#if defined(__AVX2__) && !QUAD_PRODUCTS
    Ints start;
    Shorts sums{};
    INLINE void add(Bytes w, Ints x) {
#if WIDE
        sums += (Shorts)_mm512_maddubs_epi16((__m512i)w, (__m512i)x);
#else
        sums += (Shorts)_mm256_maddubs_epi16((__m256i)w, (__m256i)x);
#endif
    }
    INLINE Ints total() const { return add_pair_products(start, sums, all_ints(0x00010001)); }
#else
    Ints sums;
    INLINE void add(Bytes w, Ints x) {
#if WIDE
        sums = (Ints)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)w, (__m512i)x);
#else
        const Ints quads = bits<Ints>(w);
        for (int byte = 0; byte < 4; byte++)
            sums += (quads >> (8 * byte) & 0xff) * ((x << (24 - 8 * byte)) >> 24);
#endif
    }
    INLINE Ints total() const { return sums; }
#endif
};
