"""Runs moto's server on a free port of the loopback interface, and prints its URL.

moto's AWS KMS differs from AWS's in two things that a certificate authority
meets: by its own documentation MessageType DIGEST isn't implemented, and RSA-PSS
has the longest salt in place of the digest's length. Both are mended here; keys,
states, aliases, errors and the wire protocol are moto's.
"""

import threading

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, utils as asymmetric
from moto.kms import responses, utils
from moto.server import main

request = threading.local()  # the server has one thread for each request
answer = responses.KmsResponse.sign


def sign(self):
    request.digest = self._get_param("MessageType") == "DIGEST"
    return answer(self)


def hash_of(algorithm):
    plain = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}[algorithm[-3:]]()
    return plain, asymmetric.Prehashed(plain) if request.digest else plain


def sign_rsa(self, message, algorithm):
    utils.validate_signing_algorithm(algorithm, utils.SigningAlgorithm.rsa_signing_algorithms())
    plain, hashed = hash_of(algorithm)
    pad = padding.PKCS1v15()
    if "PSS" in algorithm:
        pad = padding.PSS(mgf=padding.MGF1(plain), salt_length=padding.PSS.DIGEST_LENGTH)
    return self.private_key.sign(message, pad, hashed)


def sign_ecdsa(self, message, algorithm):
    utils.validate_signing_algorithm(algorithm, self.valid_signing_algorithms)
    return self.private_key.sign(message, ec.ECDSA(hash_of(algorithm)[1]))


responses.KmsResponse.sign = sign
utils.RSAPrivateKey.sign = sign_rsa
utils.ECDSAPrivateKey.sign = sign_ecdsa
main(["-H", "127.0.0.1", "-p", "0"])
