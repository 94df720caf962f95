package replay

import (
	"net"
	"path/filepath"
	"regexp"
	"strconv"

	"github.com/mayfly-ca/mayfly/internal/setting"
)

// Config is the `replay` section.
type Config struct {
	// Redis is a Redis or Valkey server that all replicas of this CA remember
	// used tokens in. Without it every process remembers those that it saw.
	Redis Redis `yaml:"redis"`
}

// Redis is one Redis or Valkey server. A cluster isn't supported.
type Redis struct {
	// Address is the server's `host:port`, or the path of its Unix socket.
	Address string `yaml:"address,omitempty"`
	// Username is the user to log in as. The default is the server's default user.
	Username string `yaml:"username,omitempty"`
	// Password is the user's password. It is read again for each connection.
	Password setting.Secret `yaml:"password,omitempty"`
	// TLS connects with TLS. Turn it off only where nobody else can read or
	// change what is on the network. It means nothing for a Unix socket.
	TLS bool `yaml:"tls"`
	// CAFile is a PEM file with the certificate authorities that the server's
	// certificate must chain to, in place of the system's.
	CAFile setting.Path `yaml:"ca_file,omitempty"`
	// KeyPrefix begins the name of every key, 1 to 64 letters, digits and
	// `:._-`. Replicas of one CA have the same; another CA on the same server
	// has another.
	KeyPrefix string `yaml:"key_prefix"`
}

// DefaultConfig names no server.
func DefaultConfig() Config {
	return Config{Redis: Redis{TLS: true, KeyPrefix: "mayfly:used:"}}
}

// Enabled reports whether a store is configured.
func (c *Config) Enabled() bool { return c.Redis.Address != "" }

// unix reports whether the server is reached over a Unix socket.
func (r *Redis) unix() bool { return filepath.IsAbs(r.Address) }

var prefixForm = regexp.MustCompile(`^[A-Za-z0-9:._-]{1,64}$`)

// Check adds every fault of c to f; path is where c is in the document.
func (c *Config) Check(path string, f *setting.Faults) {
	r, path := &c.Redis, setting.Join(path, "redis")
	r.Password.Check(setting.Join(path, "password"), f)
	switch {
	case r.Address == "":
		if r.Username != "" || r.CAFile != "" || !r.Password.IsZero() {
			f.Add(setting.Join(path, "address"), "required with the other settings of this section: host:port, or the path of a Unix socket")
		}
	case !r.unix() && !isHostPort(r.Address):
		f.Add(setting.Join(path, "address"), "isn't host:port or the absolute path of a Unix socket, as in redis.internal:6379")
	}
	f.When(r.Username != "" && r.Password.IsZero(), setting.Join(path, "password"), "required with a username")
	f.When(r.CAFile != "" && (!r.TLS || r.unix()), setting.Join(path, "ca_file"), "has no effect without TLS; remove it, or turn tls on")
	f.When(!prefixForm.MatchString(r.KeyPrefix), setting.Join(path, "key_prefix"), "1 to 64 letters, digits and :._- are expected")
}

func isHostPort(s string) bool {
	host, port, err := net.SplitHostPort(s)
	if err != nil || host == "" {
		return false
	}
	n, err := strconv.ParseUint(port, 10, 16)
	return err == nil && n > 0
}
