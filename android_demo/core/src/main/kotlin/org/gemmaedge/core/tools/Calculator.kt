package org.gemmaedge.core.tools

import java.math.BigDecimal
import java.math.MathContext
import org.gemmaedge.core.chat.Tool
import org.gemmaedge.core.json.Json

/** Numbers, + - * / ^ and parentheses: what small models are worst at. In decimal, so that 0.1 + 0.2 is 0.3. */
class Calculator : Tool {
    override val name = "calculate"
    override val description = Json.write(
        mapOf(
            "name" to name,
            "description" to "Calculates the value of an arithmetic expression.",
            "parameters" to mapOf(
                "type" to "object",
                "properties" to mapOf(
                    "expression" to mapOf("type" to "string", "description" to "Numbers, + - * / ^ and parentheses, such as 2*(3+4)"),
                ),
                "required" to listOf("expression"),
            ),
        ),
    )

    override fun run(arguments: Json): String {
        val text = arguments["expression"].text
        require(text.length <= LONGEST_CHARS) { "the expression has ${text.length} characters, expected at most $LONGEST_CHARS" }
        val value = Expression(text).whole().round(SHOWN).stripTrailingZeros()
        val isShort = value.precision() - value.scale() in -PLAIN_DIGITS..PLAIN_DIGITS // otherwise with an exponent
        return if (isShort) value.toPlainString() else value.toString()
    }

    private class Expression(text: String) {
        private val text = text.filterNot { it.isWhitespace() }
        private var at = 0
        private var depth = 0

        fun whole(): BigDecimal {
            val value = sum()
            if (at < text.length) unexpected("an operator")
            return value
        }

        private fun sum(): BigDecimal {
            var value = product()
            while (true) {
                value = if (took('+')) value.add(product(), EXACT) else if (took('-')) value.subtract(product(), EXACT) else return value
            }
        }

        private fun product(): BigDecimal {
            var value = signed()
            while (true) {
                value = if (took('*')) value.multiply(signed(), EXACT) else if (took('/')) quotient(value, signed()) else return value
            }
        }

        private fun quotient(value: BigDecimal, by: BigDecimal): BigDecimal {
            require(by.signum() != 0) { "division by zero" }
            return value.divide(by, EXACT)
        }

        /** As in mathematics and Python: -2^2 is -(2^2). */
        private fun signed(): BigDecimal = deeper { if (took('-')) signed().negate() else if (took('+')) signed() else power() }

        private fun power(): BigDecimal {
            val base = atom()
            if (!took('^')) return base
            val exponent = signed()
            val whole = exponent.toBigIntegerExactOrNull()?.takeIf { it.abs() <= LARGEST_POWER.toBigInteger() }
            requireNotNull(whole) { "the exponent is $exponent, expected a whole number from -$LARGEST_POWER to $LARGEST_POWER" }
            require(base.signum() != 0 || whole.signum() >= 0) { "division by zero" }
            return base.pow(whole.toInt(), EXACT)
        }

        private fun atom(): BigDecimal {
            if (took('(')) {
                val value = deeper { sum() }
                if (!took(')')) unexpected("a closing parenthesis")
                return value
            }
            val number = NUMBER.find(text, at)?.takeIf { it.range.first == at } ?: unexpected("a number")
            at = number.range.last + 1
            return BigDecimal(number.value)
        }

        private fun <T> deeper(action: () -> T): T {
            require(++depth <= DEEPEST) { "parentheses are nested more than $DEEPEST deep" }
            return action().also { depth-- }
        }

        private fun took(sign: Char): Boolean = (text.getOrNull(at) == sign).also { if (it) at++ }

        private fun unexpected(wanted: String): Nothing =
            throw IllegalArgumentException("found ${text.getOrNull(at)?.let { "\"$it\"" } ?: "the end"} at ${at + 1}, expected $wanted")

        private fun BigDecimal.toBigIntegerExactOrNull() =
            try {
                toBigIntegerExact()
            } catch (_: ArithmeticException) {
                null
            }
    }

    private companion object {
        const val LONGEST_CHARS = 500
        const val DEEPEST = 100
        const val LARGEST_POWER = 1000
        const val PLAIN_DIGITS = 15
        val NUMBER = Regex("""\d{1,50}(\.\d{1,50})?""")
        val EXACT = MathContext(50)
        val SHOWN = MathContext(15)
    }
}
