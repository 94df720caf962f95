package service

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/mayfly-ca/mayfly/cmd/mayfly/internal/readmetest"
	"github.com/mayfly-ca/mayfly/internal/fault"
)

// Every endpoint of the README is served as it says, and every route is there.
func TestReadmeEndpoints(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	_, index, err := get(t.Context(), r.url+"/")
	if err != nil {
		t.Fatal(err)
	}
	served := map[string]string{}
	for line := range strings.Lines(string(index)) {
		f := strings.Fields(line)
		switch {
		case len(f) != 2 || !strings.HasPrefix(f[1], "/"):
		case strings.HasPrefix(f[1], "/ctlog/"): // the log's path has the year in it
			served["/ctlog/…"] = f[0]
		default:
			served[f[1]] = f[0]
		}
	}
	for _, row := range readmetest.Table(t, "Endpoint") {
		method := ""
		for _, name := range readmetest.Quoted(row[0]) {
			path := name
			if m, p, found := strings.Cut(name, " "); found {
				method, path = m, p
			}
			switch {
			case strings.HasPrefix(path, "?"): // a query of the path before
			case path == "/metrics":
				if code, text, err := get(t.Context(), r.metrics); err != nil || code != 200 || !bytes.Contains(text, []byte("mayfly_")) {
					t.Errorf("%s: %d, %v", r.metrics, code, err)
				}
			case served[path] != method:
				t.Errorf("the README says %s %s, the service %q", method, path, served[path])
			}
			delete(served, path)
		}
		for _, name := range readmetest.Quoted(row[1]) {
			checkRPC(t, strings.Replace(name, "…", "dev.sigstore.fulcio.", 1))
		}
	}
	for path, method := range served {
		t.Errorf("the README doesn't name %s %s", method, path)
	}
}

// checkRPC wants a service, or a method of one.
func checkRPC(t *testing.T, name string) {
	t.Helper()
	full := protoreflect.FullName(strings.ReplaceAll(name, "/", "."))
	if _, err := protoregistry.GlobalFiles.FindDescriptorByName(full); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// The README's reasons are the closed list, each beside its status.
func TestReadmeReasons(t *testing.T) {
	t.Parallel()
	left := fault.Reasons()
	for _, row := range readmetest.Table(t, "Status") {
		for _, name := range readmetest.Quoted(row[2]) {
			at := slices.Index(left, fault.Reason(name))
			if at < 0 {
				t.Errorf("%s is no reason, or is there twice", name)
				continue
			}
			want := wire[left[at].Kind()]
			if !strings.Contains(row[0], strconv.Itoa(want.status)) || !slices.Contains(codesIn(row[1]), want.code) {
				t.Errorf("%s is %d, %v; it stands beside %s,%s", name, want.status, want.code, row[0], row[1])
			}
			left = slices.Delete(left, at, at+1)
		}
	}
	if len(left) > 0 {
		slices.Sort(left)
		t.Errorf("the README doesn't name %v", left)
	}
}

func codesIn(cell string) (found []codes.Code) {
	for code := codes.OK; code <= codes.Unauthenticated; code++ {
		if slices.Contains(strings.FieldsFunc(cell, func(c rune) bool { return c == ',' || c == ' ' }), code.String()) {
			found = append(found, code)
		}
	}
	return found
}
