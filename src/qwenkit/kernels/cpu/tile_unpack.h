// Packed affine codes to AMX weight tiles, int8 or bf16, with the zero already subtracted where it fits.
#pragma once
#include <immintrin.h>

#include "affine.h"

namespace qwenkit::amx {

constexpr int prefetch_ahead = 2048;

// One group of one block as int8 tiles of LINES lines; the other block's tiles lie between them.
template <int BITS, Zeros Z, int LINES>
void unpack_int8(const uint8_t* p, int64_t code_bytes, int8_t* out) {
    constexpr bool eighths = BITS == 4 && Z == Zeros::points;
    const __m512i low = _mm512_set1_epi8(eighths ? 15 << 3 : 15);
    __m512i zero = _mm512_setzero_si512();
    if constexpr (Z == Zeros::none) zero = _mm512_set1_epi8(BITS == 4 ? 8 : char(128));
    if constexpr (Z == Zeros::points && BITS == 4) {
        const __m512i points = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(p + code_bytes + 32)));
        zero = _mm512_mullo_epi32(points, _mm512_set1_epi32(0x01010101));
    }
    for (const uint8_t* end = p + code_bytes; p < end; out += LINES * 64) {
#pragma GCC unroll 16
        for (int i = 0; i < LINES; i += BITS == 4 ? 2 : 1, p += 64, out += BITS == 4 ? 128 : 64) {
            _mm_prefetch(reinterpret_cast<const char*>(p) + prefetch_ahead, _MM_HINT_T0);
            const __m512i v = _mm512_loadu_si512(p);
            if constexpr (BITS == 4) {
                const __m512i even = eighths ? _mm512_slli_epi16(v, 3) : v;
                const __m512i odd = _mm512_srli_epi16(v, eighths ? 1 : 4);
                _mm512_store_si512(out, _mm512_sub_epi8(_mm512_and_si512(even, low), zero));
                _mm512_store_si512(out + 64, _mm512_sub_epi8(_mm512_and_si512(odd, low), zero));
            } else {
                _mm512_store_si512(out, _mm512_sub_epi8(v, zero));
            }
        }
    }
}

// The same as bf16 tiles of 16 lines: a line of 8-bit codes becomes two lines of column pairs.
template <int BITS, Zeros Z>
void unpack_halves(const uint8_t* p, int64_t code_bytes, int8_t* out) {
    const __m512i low = _mm512_set1_epi8(15), byte = _mm512_set1_epi32(255), top = _mm512_set1_epi32(int(0xffff0000));
    __m512i point = _mm512_set1_epi32(Z == Zeros::minima ? 0 : BITS == 4 ? 8 : 128);
    if constexpr (Z == Zeros::points)
        point = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)(p + code_bytes + 32)));
    auto value = [&](__m512i code) {
        code = _mm512_and_si512(code, byte);
        if constexpr (BITS == 4 && Z == Zeros::points) code = _mm512_slli_epi32(code, 3);
        return _mm512_castps_si512(_mm512_cvtepi32_ps(_mm512_sub_epi32(code, point)));
    };
    auto put = [&](__m512i even, __m512i odd) {
        const __m512i pair = _mm512_or_si512(_mm512_srli_epi32(value(even), 16), _mm512_and_si512(value(odd), top));
        _mm512_store_si512(out, pair);
        out += 64;
    };
    auto four = [&](__m512i codes) {
        put(codes, _mm512_srli_epi32(codes, 8));
        put(_mm512_srli_epi32(codes, 16), _mm512_srli_epi32(codes, 24));
    };
    for (const uint8_t* end = p + code_bytes; p < end; out += 1024) {
#pragma GCC unroll 2
        for (int i = 0; i < 16; i += BITS == 4 ? 4 : 2, p += 64) {
            _mm_prefetch(reinterpret_cast<const char*>(p) + prefetch_ahead, _MM_HINT_T0);
            const __m512i v = _mm512_loadu_si512(p);
            if constexpr (BITS == 4) {
                four(_mm512_and_si512(v, low));
                four(_mm512_and_si512(_mm512_srli_epi16(v, 4), low));
            } else {
                four(v);
            }
        }
    }
}

using Unpack = void (*)(const uint8_t*, int64_t, int8_t*);

template <int BITS, Zeros Z>
inline Unpack choose_form(bool halves, bool narrow) {
    return halves ? unpack_halves<BITS, Z> : narrow ? unpack_int8<BITS, Z, 8> : unpack_int8<BITS, Z, 16>;
}

inline Unpack choose_unpack(const AffineLayout& w, bool halves) {
    const bool narrow = w.group < 64;  // tiles of 32 columns
    if (w.bits == 4 && w.zeros == Zeros::none) return choose_form<4, Zeros::none>(halves, narrow);
    if (w.bits == 4 && w.zeros == Zeros::points) return choose_form<4, Zeros::points>(halves, narrow);
    if (w.bits == 4) return choose_form<4, Zeros::minima>(halves, narrow);
    if (w.zeros == Zeros::none) return choose_form<8, Zeros::none>(halves, narrow);
    return choose_form<8, Zeros::points>(halves, narrow);
}

}  // namespace qwenkit::amx
