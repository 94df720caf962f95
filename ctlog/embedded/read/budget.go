package read

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"runtime"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
	"google.golang.org/grpc/peer"

	"github.com/mayfly-ca/mayfly/ctlog/embedded/logdir"
	"github.com/mayfly-ca/mayfly/internal/wait"
)

// What all reads of a process's logs together may hold. A read holds its place until
// its last byte is out, so a reader that takes none holds it until its answer's time
// is over.
const (
	maxReads  = 224       // at once
	readBytes = 128 << 10 // of each: buffers, the hashes of a proof
	maxBytes  = 16 << 20  // of those that say that they need more

	// One address gets an eighth, so that it can't take the others' places.
	maxReadsEach = maxReads / 8
	maxBytesEach = maxBytes / 8
)

// What one address may read a second, in bytes of tiles and entries, and how much at
// once. Who reads faster waits, and is refused where that takes longer than maxWait. A
// proof costs as much as its hashes' tiles have.
const (
	readRate     = 32 << 20
	readBurst    = 256 << 20
	proofCost    = 64 << 10
	maxWait      = time.Second
	maxAddresses = 4096 // that are remembered, those that came last
)

// MaxBytes bounds what the reads of a process hold in memory, whatever is asked and
// however slowly the answers are taken. Beside it are an index of eight bytes an entry
// for logs that are asked for get-proof-by-hash, and the issuers' certificates.
const MaxBytes = maxReads*readBytes + maxBytes + maxCompressed + packingBytes

// Budget is what the reads of all logs of a process share. It is safe for concurrent use.
type Budget struct {
	mu     sync.Mutex
	all    use
	each   map[netip.Prefix]use // of those that hold something
	work   chan struct{}        // holds one for each read that computes
	rates  *lru.Cache[netip.Prefix, *rate.Limiter]
	packed *gzipCache
	pace   *rate.Limiter // of packing, in bytes
	packer sync.Mutex    // held by the one who packs
}

// use is what is taken of a budget.
type use struct{ reads, bytes int }

// NewBudget makes a budget of which nothing is taken.
func NewBudget() *Budget {
	rates, _ := lru.New[netip.Prefix, *rate.Limiter](maxAddresses) // it fails for a size below 1
	return &Budget{
		rates:  rates,
		packed: newGzipCache(),
		each:   make(map[netip.Prefix]use),
		work:   make(chan struct{}, max(1, runtime.GOMAXPROCS(0)/2)),
		pace:   rate.NewLimiter(packRate, packBurst),
	}
}

// Place is what one request has of a Budget. A nil one is not bounded.
type Place struct {
	budget    *Budget
	client    netip.Prefix
	bytes     int
	computing bool
}

var (
	errBusy  = &Refusal{Status: http.StatusServiceUnavailable, Text: "too many reads are in progress; try again", RetryAfter: 1}
	errShare = &Refusal{Status: http.StatusTooManyRequests, Text: "too many requests of this network address are in progress; try again", RetryAfter: 1}
)

// Enter takes a place for a request, which must be given back with Leave; a *Refusal
// when there is none.
func (b *Budget) Enter(r *http.Request) (*Place, error) {
	p := &Place{budget: b, client: Network(r)}
	if err := p.add(use{reads: 1}); err != nil {
		return nil, err
	}
	return p, nil
}

// Take takes bytes, which Leave gives back; a *Refusal when there aren't as many.
func (p *Place) Take(bytes int) error {
	if p == nil {
		return nil
	}
	return p.add(use{bytes: bytes})
}

// Leave gives everything back.
func (p *Place) Leave() {
	if p != nil {
		p.idle()                     // a panic may have left it
		_ = p.add(use{-1, -p.bytes}) // less is never refused
	}
}

func (p *Place) add(more use) error {
	b := p.budget
	b.mu.Lock()
	defer b.mu.Unlock()
	all := use{b.all.reads + more.reads, b.all.bytes + more.bytes}
	each := use{b.each[p.client].reads + more.reads, b.each[p.client].bytes + more.bytes}
	switch {
	case all.reads > maxReads || all.bytes > maxBytes:
		return errBusy
	case each.reads > maxReadsEach || each.bytes > maxBytesEach:
		return errShare
	}
	b.all, b.each[p.client] = all, each
	p.bytes += more.bytes
	if each == (use{}) {
		delete(b.each, p.client)
	}
	return nil
}

// spend takes what reading so many bytes costs from what its address may read, and
// waits where that is used up; a *Refusal where it would wait too long.
func (p *Place) spend(ctx context.Context, bytes int64) error {
	if p == nil {
		return nil
	}
	now := time.Now()
	taken := LimitOf(p.budget.rates, p.client, readRate, readBurst).ReserveN(now, int(min(bytes, readBurst)))
	delay := taken.DelayFrom(now)
	if delay > maxWait {
		taken.CancelAt(now)
		return &Refusal{
			Status: http.StatusTooManyRequests, Text: "this network address reads too much at once; try again later",
			RetryAfter: int(delay/time.Second) + 1,
		}
	}
	return wait.For(ctx, delay)
}

// LimitOf is the limit of one address among those that came last.
func LimitOf(all *lru.Cache[netip.Prefix, *rate.Limiter], address netip.Prefix, each rate.Limit, burst int) *rate.Limiter {
	limit := rate.NewLimiter(each, burst)
	if known, ok, _ := all.PeekOrAdd(address, limit); ok {
		all.Get(address) // it came last
		return known
	}
	return limit
}

// compute waits for a turn to compute, which idle gives back: reads together take half
// of the processors, and issuance finds the other half free.
func (p *Place) compute(ctx context.Context) error {
	if p == nil {
		return nil
	}
	select {
	case p.budget.work <- struct{}{}:
		p.computing = true
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *Place) idle() {
	if p != nil && p.computing {
		p.computing = false
		<-p.budget.work
	}
}

// Network is whom a request counts for: the address of its client, or the /64 of an
// IPv6 address, which is the least that one customer gets (RFC 6177 §2).
func Network(r *http.Request) netip.Prefix {
	text := r.RemoteAddr
	if p, ok := peer.FromContext(r.Context()); ok && p.Addr != nil { // whom a trusted proxy speaks for
		text = p.Addr.String()
	}
	if host, _, err := net.SplitHostPort(text); err == nil {
		text = host
	}
	a, err := netip.ParseAddr(text)
	if err != nil { // no address at all: they count as one
		return netip.Prefix{}
	}
	a = a.Unmap().WithZone("")
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	return netip.PrefixFrom(a, bits).Masked()
}

// Packing costs some ten milliseconds a tile. So one is packed at a time, each once
// for all who ask, and no more than a fifth of a processor's time goes into it; who
// asks while that is used up gets the tile as it is.
const (
	maxPacked     = 2 << 20  // bytes of a tile that is packed; most have half a MB
	packingBytes  = 4 << 20  // what packing one holds at most
	maxCompressed = 8 << 20  // bytes of packed tiles that are remembered: some forty
	packRate      = 16 << 20 // bytes a second
	packBurst     = 2 * maxPacked
)

// gzipCache remembers the data tiles that were packed last. Their readers come in
// droves: a monitor reads all of them, and there are several.
type gzipCache struct {
	mu    sync.Mutex
	tiles *simplelru.LRU[gzipKey, []byte]
	bytes int // of all tiles
}

func newGzipCache() *gzipCache {
	c := new(gzipCache)
	c.tiles, _ = simplelru.NewLRU(maxCompressed>>10, func(_ gzipKey, data []byte) { c.bytes -= len(data) }) // it fails for a size below 1
	return c
}

type gzipKey struct {
	dir  logdir.Dir
	tile logdir.TilePath
}

// pack packs a tile of the length given, for all who ask for it from now on; nil when it
// has to be sent as it is.
func (b *Budget) pack(key gzipKey, tile io.Reader, length int64) ([]byte, error) {
	if length > maxPacked || !b.packer.TryLock() {
		return nil, nil
	}
	defer b.packer.Unlock()
	if known := b.packed.find(key); known != nil { // another was faster
		return known, nil
	}
	if !b.pace.AllowN(time.Now(), int(length)) {
		return nil, nil
	}
	small, err := compress(tile)
	if err == nil {
		b.packed.keep(key, small)
	}
	return small, err
}

func (c *gzipCache) find(key gzipKey) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	data, _ := c.tiles.Get(key)
	return data
}

func (c *gzipCache) keep(key gzipKey, data []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.tiles.Add(key, data)
	for c.bytes += len(data); c.bytes > maxCompressed; {
		c.tiles.RemoveOldest()
	}
}

func compress(data io.Reader) ([]byte, error) {
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestSpeed)
	if err == nil {
		_, err = io.Copy(z, data)
	}
	if err == nil {
		err = z.Close()
	}
	if err != nil {
		return nil, fmt.Errorf("compressing a tile: %w", err)
	}
	return bytes.Clone(b.Bytes()), nil // without the room that was left
}
