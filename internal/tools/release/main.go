// Command release makes what `make release` ships beside the binaries: the image, lists of
// what is in it, provenance, and signatures by a Mayfly. release.sh runs it in this order:
//
//	release man MAYFLY DIR             manual pages, from what the binary says of itself
//	release image OUT LINUX-BINARY…    an OCI image layout of several architectures, as a tar
//	release sbom BINARY…               BINARY.cdx.json (CycloneDX) and BINARY.spdx.json (SPDX)
//	release provenance DIR             DIR/provenance.json over all files of DIR
//	release sign DIR                   SHA256SUMS and provenance, through the Mayfly at MAYFLY_CA
//
// What it writes depends on its input and on VERSION, COMMIT, SOURCE_DATE_EPOCH (seconds),
// and is the same bytes each time; signatures aren't.
package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"time"
)

// build is what a release is made from.
type build struct {
	version, commit string
	at              time.Time // of the commit
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "release:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	seconds, err := strconv.ParseInt(os.Getenv("SOURCE_DATE_EPOCH"), 10, 64)
	if err != nil {
		return fmt.Errorf("SOURCE_DATE_EPOCH: %w: release.sh sets it", err)
	}
	b := build{version: cmp.Or(os.Getenv("VERSION"), "devel"), commit: os.Getenv("COMMIT"), at: time.Unix(seconds, 0).UTC()}
	if len(args) < 2 {
		return errors.New("what to make? See the comment of main.go")
	}
	switch what, rest := args[0], args[1:]; {
	case what == "man" && len(rest) == 2:
		return b.man(ctx, rest[0], rest[1])
	case what == "image" && len(rest) > 1:
		return b.image(rest[0], rest[1:])
	case what == "sbom":
		return b.sboms(rest)
	case what == "provenance" && len(rest) == 1:
		return b.provenance(rest[0])
	case what == "sign" && len(rest) == 1:
		return b.sign(ctx, rest[0])
	}
	return fmt.Errorf("%q: no such thing to make, or another number of arguments", args)
}

func writeJSON(file string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(file, append(text, '\n'), 0o644)
}
