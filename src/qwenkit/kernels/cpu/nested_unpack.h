// Nested codes to pairs of AMX weight tiles: code times inner scale = 256 high + low, signed and unsigned bytes.
#pragma once
#include <immintrin.h>

#include "affine.h"

namespace qwenkit::amx {

// One group of one block. weight: tiles of four times 64 columns, 4 KB apart, those of low 2 KB behind those of high;
// minima: bf16 [16 inner groups][16 outputs][2]; scales: of 16 outputs, their minima 32 further on.
template <int BITS, int INNER, bool MINIMA>
void unpack_nested(const uint8_t* p, int8_t* weight, uint16_t* minima, float* scales) {
    constexpr int inners = int(nested_group) / INNER, lines = INNER / 4, ahead = 2048;
    constexpr __mmask64 odd_bytes = 0xaaaaaaaaaaaaaaaa;
    const uint8_t* tail = p + inners * (MINIMA ? 32 : 16);
    const uint8_t* code = tail + (MINIMA ? 64 : 32);
    auto halves = [](const uint8_t* at) { return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)at)); };
    _mm512_store_ps(scales, halves(tail));
    if constexpr (MINIMA) {
        _mm512_store_ps(scales + 32, halves(tail + 32));
        for (int i = 0; i < 16; i++) {
            __m512i pair = _mm512_setzero_si512();
            if (i < inners) {
                const __m128i factor = _mm_loadu_si128((const __m128i*)(p + (inners + i) * 16));
                const __m512i value = _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(factor)));
                pair = _mm512_or_si512(value, _mm512_srli_epi32(value, 16));  // small integers: the lower half is empty
            }
            _mm512_store_si512(minima + i * 32, pair);
        }
    }
    const __m512i low_nibble = _mm512_set1_epi8(15), upper = _mm512_set1_epi8(0x30);
    int line = 0;
    for (int i = 0; i < inners; i++) {
        const __m128i bytes = _mm_loadu_si128((const __m128i*)(p + i * 16));
        const __m512i one = _mm512_cvtepu8_epi32(bytes), scale = _mm512_cvtepi8_epi32(bytes);
        // Products of unsigned by signed bytes are added in pairs: a zero beside each scale leaves one of the two.
        const __m512i for_even = _mm512_or_si512(one, _mm512_slli_epi32(one, 16));
        const __m512i for_odd = _mm512_slli_epi16(for_even, 8);
        const __m512i middle = _mm512_slli_epi16(_mm512_mask_blend_epi16(0xaaaaaaaa, scale, _mm512_slli_epi32(scale, 16)), BITS - 1);
        auto put = [&](__m512i codes) __attribute__((always_inline)) {
            __m512i even = _mm512_maddubs_epi16(codes, for_even), odd = _mm512_maddubs_epi16(codes, for_odd);
            if constexpr (!MINIMA) {
                even = _mm512_sub_epi16(even, middle);
                odd = _mm512_sub_epi16(odd, middle);
            }
            int8_t* at = weight + line / 16 * 4096 + line % 16 * 64;
            _mm512_store_si512(at, _mm512_mask_blend_epi8(odd_bytes, _mm512_srli_epi16(even, 8), odd));
            _mm512_store_si512(at + 2048, _mm512_mask_blend_epi8(odd_bytes, even, _mm512_slli_epi16(odd, 8)));
            line++;
        };
        auto load = [&](int n) __attribute__((always_inline)) {
            _mm_prefetch(reinterpret_cast<const char*>(code + n * 64 + ahead), _MM_HINT_T0);
            return _mm512_loadu_si512(code + n * 64);
        };
        if constexpr (BITS == 4) {
#pragma GCC unroll 4
            for (int n = 0; n < lines / 2; n++, code += 64) {
                const __m512i v = load(0);
                put(_mm512_and_si512(v, low_nibble));
                put(_mm512_and_si512(_mm512_srli_epi16(v, 4), low_nibble));
            }
        } else {
#pragma GCC unroll 2
            for (int n = 0; n < lines / 4; n++, code += 192) {
                const __m512i a = load(0), b = load(1), c = load(2);
                auto six_bits = [&](__m512i nibbles, __m512i bits) __attribute__((always_inline)) {
                    return _mm512_or_si512(_mm512_and_si512(nibbles, low_nibble), _mm512_and_si512(bits, upper));
                };
                put(six_bits(a, _mm512_slli_epi16(c, 4)));
                put(six_bits(_mm512_srli_epi16(a, 4), _mm512_slli_epi16(c, 2)));
                put(six_bits(b, c));
                put(six_bits(_mm512_srli_epi16(b, 4), _mm512_srli_epi16(c, 2)));
            }
        }
    }
}

using UnpackNested = void (*)(const uint8_t*, int8_t* weight, uint16_t* minima, float* scales);

inline UnpackNested choose_unpack_nested(const AffineLayout& w) {
    const bool minima = w.zeros == Zeros::minima;
    if (w.bits == 4 && w.inner == 32) return minima ? unpack_nested<4, 32, true> : unpack_nested<4, 32, false>;
    if (w.bits == 4) return minima ? unpack_nested<4, 16, true> : unpack_nested<4, 16, false>;
    if (w.inner == 32) return minima ? unpack_nested<6, 32, true> : unpack_nested<6, 32, false>;
    return minima ? unpack_nested<6, 16, true> : unpack_nested<6, 16, false>;
}

}  // namespace qwenkit::amx
