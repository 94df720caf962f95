package server

// What the process holds for clients, by what they can have of it. Each is what a
// running mayfly was seen to take at most, rounded up.
const (
	// connectionBytes is for a connection of HTTP/2 over TLS that is quiet: its
	// buffers, its goroutines, its header tables.
	connectionBytes = 32 << 10
	// headCopies is how often a head that is arriving is held: its buffer doubles.
	headCopies = 2
	// requestBytes is for a request: its goroutines, and the buffers of its answer.
	requestBytes = 32 << 10
	// bodyCopies is how often a body is held: as it came, as its fields, and as
	// what they decode to.
	bodyCopies = 3
	// callerBytes is for a caller that a rate limit remembers, and callerKinds how
	// many rate limits there are.
	callerBytes, callerKinds = 256, 4
	// logReadBytes is what all reads of logs together hold (ctlog/embedded/read, MaxBytes).
	logReadBytes = 60 << 20
	// ProcessBytes is what the process holds without any client: its heap, its
	// goroutines, the index of an embedded log, the keys of issuers.
	ProcessBytes = 64 << 20
)

// ClientBytes is the most that clients, whatever they do, can make the process and
// the kernel hold for them under these limits: the memory law of docs/limits.md.
// Together with ProcessBytes it belongs below the limit that the process runs under.
func (c *Config) ClientBytes() int {
	l := c.Limits
	requests := l.Issuances + waitingPlaces
	connections := 2*l.Connections + min(l.Connections, metricsConnections)
	connection := connectionBytes + headCopies*l.HeaderBytes + 2*sendBuffer // the kernel doubles it
	request := requestBytes + l.HeaderBytes + connectionWindow              // which is more than the kernel's receive buffer
	return connections*connection +
		(requests+turnedAway)*request +
		requests*bodyCopies*l.BodyBytes +
		callerKinds*maxCallers*callerBytes +
		logReadBytes
}
