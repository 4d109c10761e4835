// Proves that dividing a float by a fixed float r with one multiplication and two fmas rounds correctly:
//
//   y = RN(1 / r);   q = RN(a y);   e = RN(a - q r);   result = RN(q + e y)   ==   RN(a / r)
//
// for all mantissas of a and of r. Without underflow and overflow exponents only shift everything, so let 1 <= a, r <
// 2, a = A 2^-23, r = R 2^-23, and t = a / r in (1/2, 2).
//
// Where it could fail. y differs from 1/r by at most 2^-25, q from t by at most 2^-22 / r, so e - (a - q r) is at most
// 2^-47 and q + e y differs from t by at most 2^-46. The results can only differ if a midpoint m between two floats
// lies that near to t: |a - m r| <= 2^-45. For t < 1, m = M 2^-25, so |A 2^25 - M R| <= 8; for t >= 1, m = M 2^-24, so
// |A 2^24 - M R| <= 4. For each R and each k up to twice that bound, the solutions A of A 2^s = k (mod R) are few and
// found by modular division; the program tries them all, and, as a check on this reasoning, every A for some R.
// It exits with 1 at the first that is wrong.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <initializer_list>

namespace {

constexpr int64_t kLow = 1 << 23, kHigh = 1 << 24;
constexpr int64_t kBound = 16;

// Kept apart from the compiler's contraction by -ffp-contract=off.
bool correct(float a, float r, float y) {
  const float q = a * y;
  const float e = std::fmaf(-q, r, a);
  return std::fmaf(e, y, q) == a / r;
}

// x / 2^n modulo the odd number m.
int64_t halve(int64_t x, int n, int64_t m) {
  for (int i = 0; i < n; ++i) x = (x % 2 == 0 ? x : x + m) / 2;
  return x;
}

}  // namespace

int main() {
  int64_t tried = 0;
  const auto try_one = [&](int64_t A, float r, float y) {
    ++tried;
    if (correct(float(A) * 0x1p-23f, r, y)) return true;
    std::printf("wrong: %lld / %.9g\n", static_cast<long long>(A), double(r));
    return false;
  };
  for (int64_t R = kLow; R < kHigh; ++R) {
    const float r = float(R) * 0x1p-23f, y = 1.0f / r;
    if (R - kLow < 3 || kHigh - R < 3 || R % 1000003 == 0) {
      for (int64_t A = kLow; A < kHigh; ++A) {
        if (!try_one(A, r, y)) return 1;
      }
    }
    int zeros = 0;
    int64_t odd = R;
    for (; odd % 2 == 0; odd /= 2) ++zeros;
    for (const int shift : {25, 24}) {
      // A 2^shift = k + M 2^zeros odd: k is a multiple of 2^zeros, and A = (k / 2^zeros) / 2^(shift - zeros) mod odd.
      const int64_t unit = int64_t(1) << zeros, inverse = halve(1 % odd, shift - zeros, odd);
      for (int64_t k = -kBound / unit; k <= kBound / unit; ++k) {
        const int64_t first = (k + kBound * odd) % odd * inverse % odd;
        for (int64_t A = first + (kLow - first + odd - 1) / odd * odd; A < kHigh; A += odd) {
          if (!try_one(A, r, y)) return 1;
        }
      }
    }
  }
  std::printf("%lld quotients, all correct\n", static_cast<long long>(tried));
  return 0;
}
