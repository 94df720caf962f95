package policy

import (
	"reflect"
	"slices"
	"strconv"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"
	"cel.dev/cel-go/common/types/traits"

	"github.com/mayfly-ca/mayfly/identity/internal/claim"
)

// Input is one request, as expressions see it: a verified token's claims and
// what the issuer's rule made of them. It serves any number of expressions.
type Input struct {
	Claims   claim.Set
	Issuer   string // principal.issuer: what the certificate records
	Subject  string
	SAN      string
	SANType  string // email, uri or username
	Type     string // the configured type of the issuer
	Audience string
	Time     time.Time
}

// texts are what principalNames name.
func (in *Input) texts() [6]string {
	return [6]string{in.Issuer, in.Subject, in.SAN, in.SANType, in.Type, in.Audience}
}

// ResolveName implements cel.Activation.
func (in *Input) ResolveName(name string) (any, bool) {
	switch name {
	case nameClaims:
		return &object{set: in.Claims}, true
	case nameTime:
		return types.Timestamp{Time: in.Time}, true
	}
	if i := slices.Index(principalNames, name); i >= 0 {
		return types.String(in.texts()[i]), true
	}
	return nil, false
}

// Parent implements cel.Activation.
func (in *Input) Parent() cel.Activation { return nil }

// value is a claim in CEL's types. A number that is no 64-bit integer is a
// double, as JSON has it.
func value(v claim.Value) ref.Val {
	switch v.Kind() {
	case claim.Bool:
		return types.Bool(v.Literal() == "true")
	case claim.Number:
		if n, err := strconv.ParseInt(v.Literal(), 10, 64); err == nil {
			return types.Int(n)
		}
		f, err := strconv.ParseFloat(v.Literal(), 64)
		if err != nil { // out of a double's range
			return types.NewErr("a number is out of range")
		}
		return types.Double(f)
	case claim.String:
		return types.String(v.Literal())
	case claim.Array:
		elements := make([]ref.Val, len(v.Elements()))
		for i, e := range v.Elements() {
			elements[i] = value(e)
		}
		return types.NewRefValList(types.DefaultTypeAdapter, elements)
	case claim.Object:
		return &object{set: v.Members()}
	default:
		return types.NullValue
	}
}

// object is a JSON object as a CEL map, read where it lies: an expression looks
// at one or two of a token's forty claims, and the others cost nothing.
type object struct{ set claim.Set }

// whole is the map in CEL's own form, for what is rarely asked for.
func (o *object) whole() traits.Mapper {
	m := make(map[ref.Val]ref.Val, o.set.Len())
	for name, v := range o.set.All() {
		m[types.String(name)] = value(v)
	}
	return types.NewRefValMap(types.DefaultTypeAdapter, m)
}

// Find implements traits.Mapper.
func (o *object) Find(key ref.Val) (ref.Val, bool) {
	name, ok := key.(types.String)
	if !ok {
		return nil, false
	}
	v := o.set.Get(string(name))
	if v.Kind() == claim.Missing {
		return nil, false
	}
	return value(v), true
}

// Get implements traits.Indexer.
func (o *object) Get(key ref.Val) ref.Val {
	if v, ok := o.Find(key); ok {
		return v
	}
	return types.NewErr("no such key") // and not which: a value of the token may have named it
}

// Contains implements traits.Container.
func (o *object) Contains(key ref.Val) ref.Val {
	_, ok := o.Find(key)
	return types.Bool(ok)
}

// Size implements traits.Sizer.
func (o *object) Size() ref.Val { return types.Int(o.set.Len()) }

// Iterator implements traits.Iterable.
func (o *object) Iterator() traits.Iterator { return o.whole().Iterator() }

// ConvertToNative implements ref.Val.
func (o *object) ConvertToNative(t reflect.Type) (any, error) { return o.whole().ConvertToNative(t) }

// ConvertToType implements ref.Val.
func (o *object) ConvertToType(t ref.Type) ref.Val { return o.whole().ConvertToType(t) }

// Equal implements ref.Val.
func (o *object) Equal(other ref.Val) ref.Val {
	if second, ok := other.(*object); ok {
		other = second.whole()
	}
	return o.whole().Equal(other)
}

// Type implements ref.Val.
func (o *object) Type() ref.Type { return types.MapType }

// Value implements ref.Val.
func (o *object) Value() any { return o.whole().Value() }
