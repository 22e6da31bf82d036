// For a host build of a kernel whose threads run apart, one at a time from SYNC() to SYNC(), in an order that changes:
// what comes out must not depend on it. Included before the kernel's source.
#include <ucontext.h>
#include <cstdint>
#include <cstdlib>

static const int MOST_LANES = 1024, STACK_BYTES = 64 * 1024, MOST_ARGUMENTS = 12;
static ucontext_t scheduler, contexts[MOST_LANES];
static char stacks[MOST_LANES][STACK_BYTES];
static bool ended[MOST_LANES];
static int lane, lanes, block_of_lanes[2];
static uint64_t given[MOST_ARGUMENTS];
static void (*entry)(int, int, ...);

static inline void yield() { swapcontext(&contexts[lane], &scheduler); }

#define LANES(i, n) for (int i = lane; i < (n); i += lanes)
#define ONE_LANE if (lane == 0)
#define SYNC() yield()
#define SYNC_WARP() yield()
#define SHARED static

using Function = void (*)(int, int, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                          uint64_t, uint64_t, uint64_t, uint64_t);

static void run_lane() {
    const uint64_t* a = given;
    reinterpret_cast<Function>(entry)(block_of_lanes[0], block_of_lanes[1], a[0], a[1], a[2], a[3], a[4], a[5], a[6],
                                      a[7], a[8], a[9], a[10], a[11]);
    ended[lane] = true;
}

// Run a block of `count` threads whose arguments are whole numbers or addresses. `order`: 0 from the first thread to
// the last, 1 from the last to the first, else shuffled anew after every SYNC(). Returns how often the threads met; -1
// when some ended while others had yet to meet.
extern "C" int run_apart(void (*kernel)(int, int, ...), int count, unsigned order, int x, int y,
                         const uint64_t* arguments, int number) {
    entry = kernel;
    lanes = count;
    block_of_lanes[0] = x;
    block_of_lanes[1] = y;
    for (int k = 0; k < number; ++k) given[k] = arguments[k];
    static int turn[MOST_LANES];
    for (int k = 0; k < count; ++k) {
        ended[k] = false;
        turn[k] = order == 1 ? count - 1 - k : k;
        getcontext(&contexts[k]);
        contexts[k].uc_stack.ss_sp = stacks[k];
        contexts[k].uc_stack.ss_size = STACK_BYTES;
        contexts[k].uc_link = &scheduler;
        makecontext(&contexts[k], run_lane, 0);
    }
    unsigned state = order;
    for (int met = 0;; ++met) {
        for (int k = count - 1; order > 1 && k > 0; --k) {
            int other = rand_r(&state) % (k + 1), kept = turn[k];
            turn[k] = turn[other];
            turn[other] = kept;
        }
        int over = 0;
        for (int k = 0; k < count; ++k) {
            lane = turn[k];
            swapcontext(&scheduler, &contexts[lane]);
            over += ended[lane];
        }
        if (over == count) return met;
        if (over) return -1;
    }
}
