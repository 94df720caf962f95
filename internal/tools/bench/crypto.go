package main

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
)

// operation is a piece of cryptography that an answer can't do without.
type operation string

// The operations, as the report names them.
const (
	rs256Verify operation = "RS256 (2048 bits) verification"
	p256Verify  operation = "P-256 verification (and ES256)"
	p256Sign    operation = "P-256 signature"
	p384Sign    operation = "P-384 signature"
	rsa3072Sign operation = "RSA-3072 signature"
)

// operations are all of them, in the order of the report.
var operations = []operation{rs256Verify, p256Verify, p256Sign, p384Sign, rsa3072Sign}

// bareFigures is the CPU time of each operation alone.
type bareFigures map[operation]time.Duration

// issuance is the cryptography that one certificate can't do without: the
// token's signature verified, the P-256 proof verified, two signatures by the CA,
// one SCT signature and its verification.
func (b bareFigures) issuance(token, authority operation) time.Duration {
	return b[token] + 2*b[p256Verify] + 2*b[authority] + b[p256Sign]
}

// usual is the issuance that most figures are of.
func (b bareFigures) usual() time.Duration { return b.issuance(rs256Verify, p256Sign) }

// bareCryptography runs each operation for d on every core at once, because the
// server is measured with every core busy: two hardware threads that share a core
// are each slower than one alone.
func bareCryptography(d time.Duration) (bareFigures, error) {
	runs, err := bareOperations()
	if err != nil {
		return nil, err
	}
	b := make(bareFigures)
	for _, op := range operations {
		if b[op], err = everywhere(d, runs[op]); err != nil {
			return nil, fmt.Errorf("%s: %w", op, err)
		}
	}
	return b, nil
}

func bareOperations() (map[operation]func() error, error) {
	digest, longer := sha256.Sum256([]byte("a text of no importance")), sha512.Sum384([]byte("a text of no importance"))
	rsa2048, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	rsaSig, err := rsa.SignPKCS1v15(rand.Reader, rsa2048, crypto.SHA256, digest[:])
	if err != nil {
		return nil, err
	}
	rsa3072, err := rsa.GenerateKey(rand.Reader, 3072)
	if err != nil {
		return nil, err
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ecSig, err := ecdsa.SignASN1(rand.Reader, p256, digest[:])
	if err != nil {
		return nil, err
	}
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return map[operation]func() error{
		rs256Verify: func() error { return rsa.VerifyPKCS1v15(&rsa2048.PublicKey, crypto.SHA256, digest[:], rsaSig) },
		p256Verify: func() error {
			if !ecdsa.VerifyASN1(&p256.PublicKey, digest[:], ecSig) {
				return errors.New("a good signature doesn't verify")
			}
			return nil
		},
		p256Sign:    func() error { _, err := ecdsa.SignASN1(rand.Reader, p256, digest[:]); return err },
		p384Sign:    func() error { _, err := ecdsa.SignASN1(rand.Reader, p384, longer[:]); return err },
		rsa3072Sign: func() error { _, err := rsa.SignPKCS1v15(rand.Reader, rsa3072, crypto.SHA256, digest[:]); return err },
	}, nil
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

// fsyncTimes are the times of n writes of 1 kB with fsync in dir.
func fsyncTimes(dir string, n int) ([]time.Duration, error) {
	f, err := os.Create(filepath.Join(dir, "fsync"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	times := make([]time.Duration, n)
	block := make([]byte, 1024)
	for i := range times {
		begin := time.Now()
		if _, err := f.Write(block); err != nil {
			return nil, err
		}
		if err := f.Sync(); err != nil {
			return nil, err
		}
		times[i] = time.Since(begin)
	}
	return times, nil
}
