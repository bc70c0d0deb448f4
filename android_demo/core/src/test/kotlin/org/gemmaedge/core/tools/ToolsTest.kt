package org.gemmaedge.core.tools

import java.util.TimeZone
import org.gemmaedge.core.chat.answer
import org.gemmaedge.core.json.Json
import org.junit.Assert.assertEquals
import org.junit.Assert.assertTrue
import org.junit.Test

class ToolsTest {
    private fun calculated(expression: String) = Calculator().answer(Json.write(mapOf("expression" to expression)))

    @Test
    fun `what is right in decimal`() {
        val cases = mapOf(
            "2*(3+4)" to "14", "0.1 + 0.2" to "0.3", "1/3" to "0.333333333333333", "2^10" to "1024", "-2^2" to "-4", "2^-1" to "0.5",
            "2^3^2" to "512", "7 - 3 - 2" to "2", "12 / 2 * 3" to "18", "--3" to "3", "+5" to "5", "1000000 * 1000000" to "1000000000000",
            "10^20" to "1E+20", "5 - 5" to "0", "100" to "100", "((1.50))" to "1.5",
        )
        assertEquals(cases, cases.mapValues { calculated(it.key) })
    }

    @Test
    fun `what is wrong is told to the model`() {
        val cases = mapOf(
            "" to "error: found the end at 1, expected a number",
            "2 +" to "error: found the end at 3, expected a number",
            "(2" to "error: found the end at 3, expected a closing parenthesis",
            "2 3x" to "error: found \"x\" at 3, expected an operator",
            "1/0" to "error: division by zero",
            "0^-1" to "error: division by zero",
            "2^0.5" to "error: the exponent is 0.5, expected a whole number from -1000 to 1000",
            "2^1001" to "error: the exponent is 1001, expected a whole number from -1000 to 1000",
            "(".repeat(200) to "error: parentheses are nested more than 100 deep",
            "1".repeat(501) to "error: the expression has 501 characters, expected at most 500",
        )
        assertEquals(cases, cases.mapValues { calculated(it.key) })
        assertEquals("error: expression: found nothing, expected text", Calculator().answer("{}"))
        assertTrue(Calculator().answer("no JSON").startsWith("error: character 0"))
    }

    @Test
    fun `the time is told with its zone`() {
        val clock = Clock({ 1_764_331_500_000 }) { TimeZone.getTimeZone("Europe/Berlin") }
        assertEquals("Friday, 2025-11-28 13:05 +01:00", clock.answer("{}"))
    }

    @Test
    fun `a description names the tool`() {
        for (tool in listOf(Calculator(), Clock())) {
            val json = Json.parse(tool.description)
            assertEquals(tool.name, json["name"].text)
            assertEquals("object", json["parameters"]["type"].text)
        }
    }
}
