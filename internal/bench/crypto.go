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

// everywhere is the mean CPU time of op with one thread a core running it.
func everywhere(d time.Duration, op func() error) (time.Duration, error) {
	each := make([]time.Duration, runtime.NumCPU())
	var group errgroup.Group
	for i := range each {
		group.Go(func() (err error) {
			each[i], err = cpuPerOperation(d, op)
			return err
		})
	}
	err := group.Wait()
	var sum time.Duration
	for _, one := range each {
		sum += one
	}
	return sum / time.Duration(len(each)), err
}

// cpuPerOperation is the CPU time that one run of op costs this thread.
func cpuPerOperation(d time.Duration, op func() error) (time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	for range 200 { // warm caches and the CPU's frequency
		if err := op(); err != nil {
			return 0, err
		}
	}
	n, begin, cpu := 0, time.Now(), threadCPU()
	for ; n%100 != 0 || time.Since(begin) < d; n++ {
		if err := op(); err != nil {
			return 0, err
		}
	}
	return (threadCPU() - cpu) / time.Duration(n), nil
}

// threadCPU is the CPU time of the calling thread, user and system.
func threadCPU() time.Duration {
	const rusageThread = 1 // getrusage(2), RUSAGE_THREAD
	var u syscall.Rusage
	if err := syscall.Getrusage(rusageThread, &u); err != nil {
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
