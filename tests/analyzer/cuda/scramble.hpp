// For a host build of kernels whose loops over threads take their turns in an order that changes from loop to loop: what
// depends on another turn shows. Included before the kernel's source.
#include <cstdint>

static uint32_t scramble_loops = 0;

struct Scramble {
    int64_t turns, step, first;
    explicit Scramble(int64_t n) : turns(n), step(1), first(0) {
        static const int64_t primes[] = {2147483647, 2147483629, 2147483587, 1073741789, 1073741783};
        const uint32_t loop = ++scramble_loops;
        if (n > 1) step = primes[loop % 5] % n;
        if (n > 1 && loop & 1) step = n - step;
        if (n > 1) first = static_cast<int64_t>(loop * 2654435761u) % n;
    }
    int turn(int64_t k) const { return static_cast<int>((first + k * step) % turns); }
};

#define LANES(i, n) \
    for (Scramble scramble_{(n)}, *once_ = &scramble_; once_; once_ = nullptr) \
        for (int64_t turn_ = 0; turn_ < scramble_.turns; ++turn_) if (const int i = scramble_.turn(turn_); true)
#define ONE_LANE
#define SYNC()
#define SYNC_WARP()
