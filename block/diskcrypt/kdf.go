package diskcrypt

import (
	"context"
	"crypto/hmac"
	"encoding/binary"
	"hash"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// kdfCheck is after how many iterations a derivation looks at its context: the
// number comes from an image's header and may mean hours.
const kdfCheck = 1 << 14

// pbkdf2 derives n bytes from a passphrase (RFC 8018, section 5.2). Its blocks
// do not depend on each other and are computed at the same time, which the
// standard library's does not do.
func pbkdf2(ctx context.Context, newHash func() hash.Hash, pass, salt []byte, iterations uint32, n int) ([]byte, error) {
	size := newHash().Size()
	blocks := (n + size - 1) / size
	out := make([]byte, blocks*size)
	var wg sync.WaitGroup
	for i := range blocks {
		wg.Go(func() {
			pbkdf2Block(ctx, hmac.New(newHash, pass), salt, iterations, uint32(i+1), out[i*size:(i+1)*size])
		})
	}
	wg.Wait()
	if err := ctx.Err(); err != nil {
		clear(out)
		return nil, err
	}
	return out[:n:n], nil
}

// pbkdf2Block computes one block; cut short by ctx it is worthless.
func pbkdf2Block(ctx context.Context, mac hash.Hash, salt []byte, iterations, index uint32, out []byte) {
	// A hash has no errors.
	_, _ = mac.Write(salt)
	_, _ = mac.Write(binary.BigEndian.AppendUint32(nil, index))
	u := mac.Sum(nil)
	copy(out, u)
	for i := uint32(1); i < iterations; i++ {
		if i%kdfCheck == 0 && ctx.Err() != nil {
			return
		}
		mac.Reset()
		_, _ = mac.Write(u)
		u = mac.Sum(u[:0])
		for k, b := range u {
			out[k] ^= b
		}
	}
	clear(u)
}

// countIterations returns how many iterations a core does in a second of its
// own time for n bytes, whatever else the machine is doing meanwhile.
func countIterations(newHash func() hash.Hash, n int) uint64 {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	size := newHash().Size()
	blocks := uint64((n + size - 1) / size)
	mac := hmac.New(newHash, []byte("password"))
	out := make([]byte, size)
	for iterations := uint32(1 << 12); ; iterations *= 2 {
		start := threadTime()
		pbkdf2Block(context.Background(), mac, make([]byte, 32), iterations, 1, out)
		mac.Reset()
		if spent := threadTime() - start; spent >= 20*time.Millisecond || iterations >= 1<<30 {
			return max(uint64(float64(iterations)/max(spent.Seconds(), 1e-9))/blocks, 1)
		}
	}
}

// threadTime is the processor time that the calling thread has had.
func threadTime() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts) != nil {
		return time.Duration(time.Now().UnixNano())
	}
	return time.Duration(ts.Nano())
}
