package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// bareFigures is the CPU time of the cryptography of one issuance.
type bareFigures struct {
	rs256Verify, p256Verify, p256Sign time.Duration
}

// perCertificate is the cryptography that one certificate can't do without: the
// token's RS256 signature verified, the P-256 proof verified, two P-256
// signatures by the CA, one SCT signature and its verification.
func (b bareFigures) perCertificate() time.Duration {
	return b.rs256Verify + 2*b.p256Verify + 3*b.p256Sign
}

// bareCryptography runs each operation for about a third of d on every core at
// once, because the server is measured with every core busy: two hardware threads
// that share a core are each slower than one alone.
func bareCryptography(d time.Duration) (bareFigures, error) {
	digest := sha256.Sum256([]byte("a text of no importance"))
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return bareFigures{}, err
	}
	rsaSig, err := rsa.SignPKCS1v15(rand.Reader, rsaKey, crypto.SHA256, digest[:])
	if err != nil {
		return bareFigures{}, err
	}
	ecKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return bareFigures{}, err
	}
	ecSig, err := ecdsa.SignASN1(rand.Reader, ecKey, digest[:])
	if err != nil {
		return bareFigures{}, err
	}
	var b bareFigures
	for _, op := range []struct {
		into *time.Duration
		run  func() error
	}{
		{&b.rs256Verify, func() error { return rsa.VerifyPKCS1v15(&rsaKey.PublicKey, crypto.SHA256, digest[:], rsaSig) }},
		{&b.p256Verify, func() error {
			if !ecdsa.VerifyASN1(&ecKey.PublicKey, digest[:], ecSig) {
				return os.ErrInvalid
			}
			return nil
		}},
		{&b.p256Sign, func() error { _, err := ecdsa.SignASN1(rand.Reader, ecKey, digest[:]); return err }},
	} {
		if *op.into, err = everywhere(d/3, op.run); err != nil {
			return b, err
		}
	}
	return b, nil
}

// everywhere is the CPU time of one op with every core running it, its share of
// the collection of garbage included.
func everywhere(d time.Duration, op func() error) (time.Duration, error) {
	if _, err := onEveryCore(0, op); err != nil { // warm caches and the CPU's frequency
		return 0, err
	}
	cpu := processCPU()
	n, err := onEveryCore(d, op)
	if err != nil {
		return 0, err
	}
	return (processCPU() - cpu) / time.Duration(n), nil
}

// onEveryCore runs op on every core for d, and a hundred times at least. It says
// how often it did in all.
func onEveryCore(d time.Duration, op func() error) (int64, error) {
	var total atomic.Int64
	var group errgroup.Group
	for range runtime.NumCPU() {
		group.Go(func() error {
			const batch = 100 // between looks at the clock
			for begin, n := time.Now(), 0; n == 0 || time.Since(begin) < d; n++ {
				for range batch {
					if err := op(); err != nil {
						return err
					}
				}
				total.Add(batch)
			}
			return nil
		})
	}
	err := group.Wait()
	return total.Load(), err
}

// byTurns is everywhere for several operations whose times are compared: each
// has its d in many parts, between those of the others, so that what else the
// machine does burdens all of them. It gives the medians.
func byTurns(d time.Duration, ops ...func() error) ([]time.Duration, error) {
	const turns = 21
	times := make([][]time.Duration, len(ops))
	for range turns {
		for i, op := range ops {
			one, err := everywhere(d/turns, op)
			if err != nil {
				return nil, err
			}
			times[i] = append(times[i], one)
		}
	}
	medians := make([]time.Duration, len(ops))
	for i := range ops {
		medians[i] = quantile(times[i], 0.5)
	}
	return medians, nil
}

// processCPU is the CPU time of this process, user and system.
func processCPU() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// fsyncTime is the median time of a 1 kB write and its fsync in dir.
func fsyncTime(dir string, n int) (time.Duration, error) {
	f, err := os.Create(filepath.Join(dir, "fsync"))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	times := make([]time.Duration, n)
	block := make([]byte, 1024)
	for i := range times {
		begin := time.Now()
		if _, err := f.Write(block); err != nil {
			return 0, err
		}
		if err := f.Sync(); err != nil {
			return 0, err
		}
		times[i] = time.Since(begin)
	}
	return quantile(times, 0.5), nil
}
