package main

import (
	"context"
	"crypto/rand"
	"time"

	"github.com/transparency-dev/tessera"
	"github.com/transparency-dev/tessera/ctonly"
	"github.com/transparency-dev/tessera/storage/posix"
	"golang.org/x/mod/sumdb/note"

	"github.com/mayfly-ca/mayfly/ctlog"
)

// openTimer is the control: Tessera with its own batching by a timer, as it is
// without the embedded log's gate. Nothing else in this tree imports Tessera but
// ctlog/embedded.
func openTimer(ctx context.Context, dir string) (submit, func() error, error) {
	private, _, err := note.GenerateKey(rand.Reader, "bench")
	if err != nil {
		return nil, nil, err
	}
	signer, err := note.NewSigner(private)
	if err != nil {
		return nil, nil, err
	}
	life, end := context.WithCancel(ctx)
	driver, err := posix.New(life, posix.Config{Path: dir})
	if err != nil {
		end()
		return nil, nil, err
	}
	options := tessera.NewAppendOptions().WithCTLayout().WithCheckpointSigner(signer).
		WithCheckpointInterval(ctlog.DefaultCheckpointInterval).WithBatching(512, 50*time.Millisecond)
	appender, shutdown, _, err := tessera.NewAppender(life, driver, options)
	if err != nil {
		end()
		return nil, nil, err
	}
	add := tessera.NewCertificateTransparencyAppender(appender)
	do := func(ctx context.Context, chain ctlog.Chain) error {
		_, err := add(ctx, &ctonly.Entry{
			Timestamp: uint64(time.Now().UnixMilli()), IsPrecert: true, Certificate: chain.TBS,
			Precertificate: chain.Precertificate, IssuerKeyHash: chain.IssuerKeyHash[:],
			FingerprintsChain: [][32]byte{chain.IssuerKeyHash},
		})()
		return err
	}
	done := func() error {
		defer end()
		return shutdown(context.WithoutCancel(ctx))
	}
	return do, done, nil
}
