package claim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/mayfly-ca/mayfly/internal/fault"
)

func TestParseRefuses(t *testing.T) {
	t.Parallel()
	many := make([]string, maxMembers+1)
	for i := range many {
		many[i] = fmt.Sprintf(`"m%d":0`, i)
	}
	for name, c := range map[string]struct {
		doc  string
		want error
	}{
		"empty":                     {"", errNotObject},
		"byte order mark":           {"\ufeff{}", errNotObject},
		"array":                     {"[]", errNotObject},
		"string":                    {`"a"`, errNotObject},
		"invalid UTF-8":             {"{\"a\":\"\xff\"}", errNotUTF8},
		"overlong UTF-8":            {"{\"a\":\"\xc0\x80\"}", errNotUTF8},
		"trailing":                  {"{} x", errTrailing},
		"second document":           {"{}{}", errTrailing},
		"unfinished":                {`{"a":1`, errJSON},
		"comma at the end":          {`{"a":1,}`, errJSON},
		"array comma at the end":    {`{"a":[1,]}`, errJSON},
		"leading zero":              {`{"a":01}`, errJSON},
		"plus":                      {`{"a":+1}`, errJSON},
		"bare dot":                  {`{"a":1.}`, errJSON},
		"bare exponent":             {`{"a":1e}`, errJSON},
		"minus alone":               {`{"a":-}`, errJSON},
		"NaN":                       {`{"a":NaN}`, errJSON},
		"single quotes":             {`{'a':1}`, errJSON},
		"comment":                   {`{"a":1/**/}`, errJSON},
		"control character":         {"{\"a\":\"\n\"}", errJSON},
		"control after an escape":   {"{\"a\":\"\\n\n\"}", errJSON},
		"lone surrogate":            {`{"a":"\ud800"}`, errJSON},
		"lone low surrogate":        {`{"a":"\udc00"}`, errJSON},
		"surrogates the wrong way":  {`{"a":"\udc00\ud800"}`, errJSON},
		"short escape":              {`{"a":"\u12"}`, errJSON},
		"unknown escape":            {`{"a":"\x41"}`, errJSON},
		"escape at the end":         {`{"a":"\`, errJSON},
		"duplicate":                 {`{"iss":1,"iss":1}`, errDuplicate},
		"duplicate by case":         {`{"iss":1,"ISS":1}`, errDuplicate},
		"duplicate by escape":       {`{"iss":1,"\u0069ss":1}`, errDuplicate},
		"duplicate by long s":       {`{"iss":1,"iſs":1}`, errDuplicate},
		"duplicate by Kelvin sign":  {`{"kid":1,"` + "\u212a" + `id":1}`, errDuplicate},
		"duplicate of Kelvin sign":  {`{"` + "\u212a" + `id":1,"kid":1}`, errDuplicate},
		"duplicate inside":          {`{"a":{"b":1,"b":2}}`, errDuplicate},
		"duplicate inside an array": {`{"a":[{"b":1,"b":2}]}`, errDuplicate},
		"too deep":                  {`{"a":` + strings.Repeat("[", 10000), errDepth},
		"too deep in objects":       {strings.Repeat(`{"a":`, maxDepth+1) + "1", errDepth},
		"too many members":          {"{" + strings.Join(many, ",") + "}", errMembers},
	} {
		if _, err := Parse(c.doc); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

func TestParseReads(t *testing.T) {
	t.Parallel()
	s, err := Parse(" {\"s\":\"a\\u00e9\\ud83d\\ude00\\n\\/\\\"\", \"n\":-1.5e3 ,\"t\":true,\"f\":false,\"z\":null,\r\n\"a\":[1,\"x\",[]],\"o\":{\"k\":\"v\",\"K\":\"w\",\"e\":{}},\"\":\"empty\"}\n")
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]struct {
		kind    Kind
		literal string
	}{
		"s": {String, "aé😀\n/\""}, "n": {Number, "-1.5e3"}, "t": {Bool, "true"}, "f": {Bool, "false"}, "z": {Null, ""},
		"a": {Array, ""}, "o": {Object, ""}, "": {String, "empty"}, "missing": {Missing, ""}, "S": {Missing, ""},
	} {
		if v := s.Get(name); v.Kind() != want.kind || v.Literal() != want.literal {
			t.Errorf("%q is %v %q, want %v %q", name, v.Kind(), v.Literal(), want.kind, want.literal)
		}
	}
	if e := s.Get("a").Elements(); len(e) != 3 || e[1].Literal() != "x" {
		t.Errorf("elements %v", e)
	}
	if v := s.Get("o").Get("K").Literal(); v != "w" {
		t.Errorf("inside, case tells members apart: %q", v)
	}
	if v := s.Get("s").Get("k"); v.Kind() != Missing {
		t.Errorf("a string has the member %v", v)
	}
}

// U+FFFD is what encoding/json makes of a lone surrogate, and a character that a text may have.
func TestSurrogatesBesideTheReplacementCharacter(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		`\ufffd`: "\ufffd", `\n` + "\ufffd": "\n\ufffd", `\ufffd\ud83d\ude00`: "\ufffd😀", `\uFFFD\uD83D\uDE00`: "\ufffd😀",
		`\ufffd\\ud800`: `�\ud800`, `\ufffd\ud7ff\ue000`: "\ufffd\ud7ff\ue000",
		`\ufffd\ud800`: "", `\ufffd\udc00`: "", `\ufffd\\\ud800`: "", `\ud800\ufffd`: "", `\ufffd\ud83d\ude00\uDE00`: "", `\ufffd\ud83d \ude00`: "", `\ud800\ud83d\ude00`: "",
	} {
		s, err := Parse(`{"a":"` + text + `"}`)
		if got := s.Get("a").Literal(); got != want || (err == nil) != (want != "") {
			t.Errorf("%s: %q, %v", text, got, err)
		}
	}
}

func TestTextRefusesWhatNoCertificateCarries(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		json string
		want fault.Reason // "" for accepted
	}{
		"plain":             {`"alice"`, ""},
		"space inside":      {`"My Workflow é 名"`, ""},
		"null":              {`null`, fault.ClaimMissing},
		"empty":             {`""`, fault.ClaimMissing},
		"number":            {`1`, fault.ClaimInvalid},
		"boolean":           {`true`, fault.ClaimInvalid},
		"object":            {`{}`, fault.ClaimInvalid},
		"array":             {`["a"]`, fault.ClaimInvalid},
		"NUL":               {`"a\u0000"`, fault.ClaimInvalid},
		"CR":                {`"a\r"`, fault.ClaimInvalid},
		"LF":                {`"a\n"`, fault.ClaimInvalid},
		"tab":               {`"\ta"`, fault.ClaimInvalid},
		"DEL":               {`"\u007f"`, fault.ClaimInvalid},
		"C1":                {`"\u0085"`, fault.ClaimInvalid},
		"line separator":    {`"a\u2028b"`, fault.ClaimInvalid},
		"RTL override":      {`"a\u202eb"`, fault.ClaimInvalid},
		"direction isolate": {`"a\u2066b"`, fault.ClaimInvalid},
		"too long":          {`"` + strings.Repeat("s", MaxText+1) + `"`, fault.ClaimInvalid},
	} {
		s, err := Parse(`{"secret-name":` + c.json + `}`)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		_, err = s.Get("secret-name").Text("secret-name")
		if c.want == "" {
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
			continue
		}
		if e := fault.From(err); e == nil || e.Reason != c.want || e.Metadata["claim"] != "secret-name" || !strings.Contains(e.Public, "secret-name") {
			t.Errorf("%s: %v, want %s naming the claim", name, err, c.want)
		}
	}
	if e := fault.From(func() error { _, err := (Value{}).Text("x"); return err }()); e.Reason != fault.ClaimMissing {
		t.Errorf("missing: %v", e)
	}
}

func TestWholeNumbersInEveryNotation(t *testing.T) {
	t.Parallel()
	for literal, want := range map[string]string{
		"0": "0", "42": "42", "-7": "-7", "12345678901234567890": "12345678901234567890",
		"1e3": "1000", "1.5e3": "1500", "2.0": "2", "1e15": "1000000000000000",
		"1.5": "", "1e400": "", "1e21": "", "9007199254740993.0": "", "-0": "", "1e-1": "", strings.Repeat("9", 33): "",
	} {
		s, err := Parse(`{"n":` + literal + `}`)
		if err != nil {
			t.Fatal(err)
		}
		if got, ok := s.Get("n").Whole(); got != want && ok || ok != (want != "") {
			t.Errorf("%s is written %q %v, want %q", literal, got, ok, want)
		}
	}
	if _, ok := (Value{kind: String, text: "1"}).Whole(); ok {
		t.Error("a string is taken as a number")
	}
}

// FuzzParse holds the reader against encoding/json: what we accept it accepts,
// and both read the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{
		`{}`, `{"iss":"https://i","aud":["a","b"],"exp":1.7e9,"email_verified":true}`, `{"a":{"b":[{"c":null}]}}`,
		`{"a":"\ud83d\ude00\u0000"}`, `{"iss":1,"ISS":2}`, "\ufeff{}", `{"a":[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]}`, `{"a":1e400}`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		s, err := Parse(doc)
		if err != nil {
			if e := new(SyntaxError); !errors.As(err, &e) {
				t.Fatalf("error of type %T", err)
			}
			return
		}
		d := json.NewDecoder(bytes.NewReader([]byte(doc)))
		d.UseNumber()
		var want map[string]any
		if err := d.Decode(&want); err != nil {
			t.Fatalf("encoding/json refuses what was accepted: %v", err)
		}
		if len(want) != len(s.members) {
			t.Fatalf("%d members, encoding/json has %d", len(s.members), len(want))
		}
		for _, m := range s.members {
			same(t, m.value, want[m.name])
			_, _ = m.value.Text(m.name)
			if digits, ok := m.value.Whole(); ok && strings.Trim(digits, "-0123456789") != "" {
				t.Fatalf("%q is not digits", digits)
			}
		}
	})
}

func same(t *testing.T, v Value, want any) {
	t.Helper()
	ok := false
	switch w := want.(type) {
	case nil:
		ok = v.kind == Null
	case bool:
		ok = v.kind == Bool && v.text == strconv.FormatBool(w)
	case json.Number:
		ok = v.kind == Number && v.text == string(w)
	case string:
		ok = v.kind == String && v.text == w
	case []any:
		if ok = v.kind == Array && len(v.Elements()) == len(w); ok {
			for i := range w {
				same(t, v.Elements()[i], w[i])
			}
		}
	case map[string]any:
		if ok = v.kind == Object && len(v.contents.members.members) == len(w); ok {
			for _, m := range v.contents.members.members {
				same(t, m.value, w[m.name])
			}
		}
	}
	if !ok {
		t.Fatalf("%v %q, encoding/json has %v", v.kind, v.text, want)
	}
}

// TestBoundsAreStated: the messages and docs/tokens.md have them.
func TestBoundsAreStated(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../../docs/tokens.md")
	if err != nil {
		t.Fatal(err)
	}
	for row, bound := range map[string]int{"| depth of its JSON | ": maxDepth, "| members of one object in it | ": maxMembers, "goes into a certificate | ": MaxText} {
		if !strings.Contains(string(page), row+strconv.Itoa(bound)+" |") {
			t.Errorf("docs/tokens.md doesn't say %s%d", row, bound)
		}
	}
	for fault, bound := range map[*SyntaxError]int{errDepth: maxDepth, errMembers: maxMembers} {
		if !strings.Contains(fault.Fault, " "+strconv.Itoa(bound)+" ") {
			t.Errorf("%q doesn't say %d", fault.Fault, bound)
		}
	}
}
